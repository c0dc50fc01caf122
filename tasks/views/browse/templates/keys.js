// Keys for a page that works without them: j and k move between rows or answers, letters press the buttons of the one in focus.
"use strict";
const items = () => [...document.querySelectorAll("[data-item]")];
const current = () => document.activeElement.closest("[data-item]");
const move = (step) => {
  const all = items(), at = all.indexOf(current());
  const next = all[at < 0 ? (step > 0 ? 0 : all.length - 1) : Math.min(Math.max(at + step, 0), all.length - 1)];
  if (next) { next.focus(); next.scrollIntoView({ block: "nearest" }); }
};
const press = (name) => {
  const button = (current() ?? items()[0])?.querySelector(`form.label .${name}`);
  if (button) button.click();
};
const follow = (link) => document.querySelector(`a[rel=${link}]`)?.click();
const keys = {
  j: () => move(1), k: () => move(-1), r: () => press("right"), w: () => press("wrong"), u: () => press("remove"),
  n: () => (current() ?? items()[0])?.querySelector("[name=note]")?.focus(),
  ".": () => follow("next"), ",": () => (document.querySelector("a[rel=prev]") ? follow("prev") : history.back()),
  x: () => follow("random"), "/": () => document.querySelector("input[name=q]").focus(),
  "?": () => { const help = document.getElementById("keys"); help.open = !help.open; help.scrollIntoView(); },
};
document.addEventListener("keydown", (event) => {
  const writing = event.target.matches("input, select, textarea");
  if (event.key === "Escape" && writing) { const item = current(); event.target.blur(); item?.focus(); return; }
  if (event.key === "Enter" && !event.shiftKey && event.target.matches("textarea[name=note]")) {
    event.preventDefault();
    event.target.form.querySelector("button.note").click();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || writing) return;
  if (event.key === "Enter" && event.target.matches("[data-item]")) { event.target.querySelector("a.open")?.click(); return; }
  if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
});
// the answer that was just labelled is the address's target: the keys go on from there
const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
if (target) (target.closest("[data-item]") ?? target).focus();
