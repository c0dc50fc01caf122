"""Strings that somebody may write where a name, a path or a value is expected: none of them is ever executed."""

CANARY = "canary"
"""The file that each of them would make if it were executed."""
_COMMAND = f"touch {CANARY}"

SHELL = [
    f"x;{_COMMAND}", f"x;{_COMMAND};", f"x; {_COMMAND} #", f"x && {_COMMAND}", f"x || {_COMMAND}", f"x | {_COMMAND}", f"x & {_COMMAND}",
    f"$({_COMMAND})", f"x$({_COMMAND})", f"`{_COMMAND}`", f"x`{_COMMAND}`", f'"; {_COMMAND}; "', f"'; {_COMMAND}; '", f"';{_COMMAND};'",
    f'"$({_COMMAND})"', f"'$({_COMMAND})'", f"x\n{_COMMAND}", f"x\n{_COMMAND}\n", f"x\r\n{_COMMAND}\r\n", f"x\r{_COMMAND}", f">{CANARY}",
    f"x>{CANARY}", f"x >> {CANARY}", f"x 2>{CANARY}", f"<({_COMMAND})", f">({_COMMAND})", f"${{IFS}}{_COMMAND}", f"x;touch${{IFS}}{CANARY}",
    f"{{touch,{CANARY}}}", f"x;{{touch,{CANARY}}};", f"!{_COMMAND}", f"x\\;{_COMMAND}", f"x\\\n{_COMMAND}", f"x%0a{_COMMAND}", f"x\x0b{_COMMAND}",
    f"x\x0c;{_COMMAND}", f"x\u2028{_COMMAND}", f"x\u0085{_COMMAND}", f"x；{_COMMAND}", f"x\u037e{_COMMAND}", f"<<E\n{_COMMAND}\nE", f"x<<<$({_COMMAND})",
    f"$((`{_COMMAND}`))", f"${{x:-$({_COMMAND})}}", f"${{x:=`{_COMMAND}`}}", f"x' $({_COMMAND}) '", f'x" $({_COMMAND}) "', f"~;{_COMMAND}", f"*;{_COMMAND}",
    f"eval {_COMMAND}", f"bash -c '{_COMMAND}'", f"\\$({_COMMAND})",
]  # fmt: skip
TEMPLATES = [
    "${key}", "${item}", "${item.parent}", "${rounds}", "${rounds.r1}", "\\${key}", "$${key}", "${", "${}", "${bases.r0.engine}", "$key", "$DVC_STAGE",
    '"$DVC_STAGE"', "{{ key }}", "{{ 7 * 7 }}", "{% raw %}", "{key}", "{0}", "{0.__class__}", "%(key)s", "%s%n", "%d", "<%= 1 %>", "#{key}", "${oc.env:HOME}",
    "${oc.eval:1}", f"${{oc.decode:$({_COMMAND})}}", "$HOME", "~", "~root", "%PATH%", f"{{{{ cycler.__init__.__globals__.os.system('{_COMMAND}') }}}}",
]  # fmt: skip
CODE = [
    f"__import__('os').system('{_COMMAND}')", f"!!python/object/apply:os.system ['{_COMMAND}']", f"!!python/object/new:os.system ['{_COMMAND}']",
    f"lambda: open('{CANARY}', 'w')", f"open('{CANARY}', 'w')", f"'); import os; os.system('{_COMMAND}')", f"copy (select 1) to '{CANARY}'",
    f"'; copy (select 1) to '{CANARY}'; --", f"r1'; copy (select 1) to '{CANARY}'; --", f'r1"; attach \'{CANARY}\'; --', f"attach '{CANARY}'", "' or '1'='1", "'; drop table rounds; --",
    f"install httpfs; export database '{CANARY}'", "<script>alert(1)</script>", "javascript:alert(1)", "[link](http://evil.example)", "=cmd|' /C calc'!A0", "\x1b]0;title\x07",
    "\x1b[2J\x1b[H", "\x1b[31mred", "\x9b31m", "a\bb", "[bold]x[/bold]", "[/]", "[link=file:///etc/passwd]x[/link]",
]  # fmt: skip
OPTIONS = [
    "-", "--", "-x", "--help", "-rf", f"--output={CANARY}", f"--output={CANARY} HEAD", f"--upload-pack={_COMMAND}", f"-c core.pager={_COMMAND}", f"--exec={_COMMAND}", f"-o{CANARY}", "--version",
    f"--git-dir={CANARY}", "-h", "--set", "—help", "-1", "+x", "/?", f"HEAD:{CANARY}", "HEAD^{/x}", "@{-1}", "@", f"--open-files-in-pager={_COMMAND}",
]  # fmt: skip
PATHS = [
    "..", ".", "/", "//", "../..", "../../../../etc/passwd", "/etc/passwd", "/etc", "/dev/zero", "/dev/stdin", "/proc/self/environ", "./x", "a/b", "a//b", "x/", "\\", "a\\b", "C:\\x", "file:///etc/passwd",
    "http://127.0.0.1:1/x", "s3://bucket/x", "hf://x", "r1/../r0", "round=r1", "data/round=r1/model", "x\0y", "\0", "con", "nul.txt", ".git", ".dvc", "*", "?", "[a-z]", "{a,b}", "data/../params.yaml",
]  # fmt: skip
YAML = [
    "on", "off", "yes", "no", "y", "n", "null", "~null", "true", "false", "True", "1e3", "1", "0", "-0", "0x1f", "0o17", "1_000", ".inf", ".nan", "12:30:45", "2001-01-01", "=", "<<", "? x", "- x", ": x", "x: y",
    "x : y", "# x", "x #y", "&a x", "*a", "!x", "|", "> x", "@x", "`x", "%YAML 1.1", "---", "...", "{a: b}", "[a, b]", "'x", '"x', "x'y", 'x"y', "\t", " ", "", " x", "x ", "x\ty", "\n", "\r", "\ufeffx",
]  # fmt: skip
LOOKALIKES = [
    "r１", "ｒ1", "r\u200b1", "\u202e1r", "r1\u200d", "г1", "r¹", "é", "e\u0301", "ß", "ı", "İ", "ﬁ", "😀", "\ud800", "\udcff", "x\udc80y", "\U0010ffff", "R1", "r-1", "r.1", "r 1", "1r", "_r", "r1\n", "x" * 42, "x" * 300,
    "x" * 5000, "é" * 200, "parent", "base", "anchor", "grandparent", "model", "key", "item", "rounds", "import", "select", "none", "nan", "inf", "__class__", "constructor",
]  # fmt: skip
ALL = list(dict.fromkeys([*SHELL, *TEMPLATES, *CODE, *OPTIONS, *PATHS, *YAML, *LOOKALIKES]))
