"""What each metric means, by its name: the one source for SQL (`select name, meaning from metrics`) and docs/queries.md.

A name is a measure's, with what it is about in front or behind: `validation_greedy/level_4` is `greedy` on the validation
set, over the problems of level 4. Without such a word the exam's measures are of the held-out set, over all levels.
"""

import re
from functools import cache

MEANINGS = {
    # rows, by the stage that wrote them
    "prompts": "problems that can be answered",
    "prompts_rejected/<reason>": "problems that were turned away for this reason",
    "responses": "answers asked for",
    "response_errors": "answers that failed",
    "response_tokens": "tokens of all answers together; in the exam, the mean of one",
    "response_answered": "share of the answers in which a final answer was found",
    "judge_errors/<judge>": "share of the answers that the judge could not score",
    "judge_score/<judge>": "the judge's mean score, in its own scale",
    "kept": "answers that the filter kept",
    "dropped/<reason>": "answers that the filter dropped for this reason",
    "critique_targets": "prompts with a target: the answer that the filter ranked first",
    "critiques": "critiques asked for",
    "critiques_kept": "critiques whose refinements reached the target often enough",
    "critique_errors": "critiques that failed or cannot be read",
    "critique_wrong/<member>": "answers that missed their target and were criticised",
    "critique_passed_wrong/<member>": "share of the criticised wrong answers that the critique passed",
    "critique_passed_correct/<member>": "share of the right answers, criticised beside them, that the critique passed",
    "refinement_errors/<member>": "refinements that failed, were cut off or have no answer",
    "refinement_success": "share of the refinements that reached the target",
    "turned_right/<member>": "wrong first answers of which the second is right",
    "turned_wrong/<member>": "right first answers of which the second is wrong",
    "turn_errors/<member>": "second answers that cannot be used",
    "pairs": "preference pairs",
    "pairs/<source>": "preference pairs whose chosen side is from there: responses or refinements",
    "pair_margin": "mean of chosen score − rejected score, in the reward's scale",
    "training_rows": "rows to fine-tune on",
    "training_rows/<source>": "rows to fine-tune on from there: responses, refinements, critiques or replay",
    "training_dropped/<reason>": "rows that were collected and left out for this reason",
    "preferences": "pairs to train on",
    "preferences_dropped/<reason>": "pairs that were collected and left out for this reason",
    # train
    "trained": "1 where there was something to learn from; 0 where the model is the start's, unchanged",
    "drift_distance": "distance of new rows from replayed ones in the last layer's hidden states, in units of the latter's spread",
    "combine_held_out": "loss on held-out rows of the combination of checkpoints that was taken",
    "<phase>_loss": "training loss at the end of the phase",
    "<phase>_grad_norm": "norm of the gradient at the end of the phase, before it is clipped",
    "<phase>_mean_token_accuracy": "share of the trained tokens that were the likeliest, at the end of the phase",
    "<phase>_entropy": "mean entropy of the next token over the trained ones, nats, at the end of the phase",
    "<phase>_rewards/margins": "mean implicit reward of chosen − rejected, at the end of the phase",
    "<phase>_rewards/accuracies": "share of the pairs whose chosen side has the higher implicit reward",
    # the exam's answers
    "greedy": "share of the greedy answers that are right in every step",
    "greedy_answer": "share of the greedy answers whose final answer is right, whatever the steps",
    "pass_at_1": "chance that one sampled answer is right in every step",
    "pass_at_1_answer": "share of the sampled answers whose final answer is right, whatever the steps",
    "pass_at_<k>": "chance that one of k sampled answers is right (Chen et al. 2021)",
    "majority_at_<k>": "share of the problems where the most frequent of k final answers is right",
    "distinct_2": "different word pairs in a problem's samples, over all of them (Li et al. 2016)",
    "distinct_answers": "different final answers among a problem's samples",
    "entropy": "mean entropy of the next token in sampled answers, nats",
    "answered": "share of the answers in which a final answer was found",
    "eval_errors": "share of the answers without a score",
    "grade": "mean grade of the greedy answers, by the examiner",
    "grade_sampled": "mean grade of the sampled answers, by the examiner",
    # judges and critics on the gold set
    "critic_errors": "share of the gold answers of which the critique cannot be read",
    "critique_location": "share of the wrong gold answers that the critique calls wrong at their first wrong step",
    "refined": "share of the answers that are right after self-correction",
    "critique_cl": "confidence level: share of the right answers that are still right after self-correction",
    "critique_cs": "critique score: share of the wrong answers that self-correction puts right",
    "critique_rss": "relative self-correction score: ½ where correction keeps the accuracy, 1 where it is as good as the "
    "better of two tries (Yang et al. 2024)",
    "skipped/<judge>": "1: the judge was not measured, for it asks a model that is not there",
    # probes
    "exploration_balance": "mean balance score: many right answers among those with a high reward (B-STaR, Zeng et al. 2024)",
    "exploration_pass_at_<k>": "chance that one of k of the round's own answers is right",
    "exploration_distinct": "different right answers to a prompt of the round",
    "exploration_auroc": "chance that a right answer of the round has a higher reward than a wrong one",
    "exploration_errors": "share of the round's answers that could not be checked or have no reward",
    "sharpening_gain": "mean gain over the base in the share of right samples",
    "sharpening_coverage_gain": "mean gain over the base in problems that some sample solves",
    "sharpening_explained": "part of the gain that lies on problems which the base covers",
    "sharpening_lost": "share of the problems that the base covers which no sample solves any more",
    "sharpening_new": "share of the problems that the base does not cover which a sample solves",
    "collapse_<what>_ratio": "the same as a share of the parent's",
    "collapse_tokens": "mean tokens of an answer to the round's prompts",
    "collapse_entropy": "mean entropy of the next token in answers to the round's prompts, nats",
    "collapse_distinct_2": "different word pairs in the answers to a prompt of the round, over all of them",
    "alignment_refusal": "share of the ill-posed problems that the model refuses",
    "alignment_base_refusal": "share of the ill-posed problems that the base refuses",
    "alignment_change": "mean change of refusal against the base",
    "alignment_errors": "share of the requests about ill-posed problems that failed",
    "forgetting_trained": "share of the prompts that the parent was trained on which the model solves",
    "forgetting_<ancestor>": "share of the problems that this ancestor solved and the model does not",
    "contamination_auroc": "chance that a trained problem looks more memorised than one of the exam; ½ where training left "
    "no trace",
    "contamination_training": "mean score of memorisation of the problems that were trained on",
    "contamination_exam": "mean score of memorisation of the exam's problems",
    "contamination_errors": "share of the problems without a score of memorisation",
    "reward_consistency/<judge>": "share of the pairs on which the judge scores the right answer above the same with one "
    "number changed",
    "reward_consistency_errors/<judge>": "share of these pairs that the judge could not score",
    "habits_errors": "share of the counts that cannot be read",
    "habits_<habit>": "how often an answer shows the habit, on average (Gandhi et al. 2025)",
    "self_choice_first": "share of the first answers that are right",
    "self_choice_generation": "share of the revisions that are right",
    "self_choice_choice": "how often the model's choice between the two is right",
    "self_choice_gain": "mean of choice right − revision right",
    "self_choice_revision": "how often the revision is chosen where the two differ",
    "self_choice_errors": "share of the problems where a request failed or a choice cannot be read",
    "friction_stuck": "share of the wrong answers that are still wrong after the last true feedback",
    "friction_wrong": "share of the answers that were wrong at first",
    "friction_errors": "share of the wrong answers that no answer followed which could be checked",
    "familiarity_own": "mean log-probability of a token of the model's own answers, nats",
    "familiarity_other": "mean log-probability of a token of the base's answers, nats",
    "familiarity_gap": "mean difference of the two",
    "familiarity_errors": "share of the problems of which one of the two is missing",
    "role_<role>": "share of the completions in this role that pass",
    "roles_errors": "share of the completions in roles that failed or cannot be marked",
    "lm_eval/<task>/version": "version of the task of lm-evaluation-harness",
    "lm_eval/<task>/num_fewshot": "examples in front of each of the task's problems",
    "lm_eval/<task>/errors": "share of the task's items that the engine failed on",
    "lm_eval/<task>/<metric>_stderr": "standard error of the task's metric",
    "lm_eval/<task>/<metric>": "the metric that lm-evaluation-harness gives the task",
    # gates, which compare with the parent on the validation set
    "promoted": "1 where all gates promote the round, else 0",
    "gate_delta": "gain of sampled accuracy over the parent",
    "gate_p": "p of a gain that large were the parent as good (Wilcoxon's signed-rank test, one-sided)",
    "gate_greedy_delta": "gain of greedy accuracy over the parent",
    "gate_greedy_p": "p of a greedy difference that large either way (McNemar's exact test)",
    "gate_change/<measure>": "change of the measure against the parent",
    "gate_total_change/<measure>": "change of the measure against the base",
    "gate_coverage": "share of the problems that the base's samples solve which the round's solve, too",
    "gate_new": "problems that a sample solves and no sample of the base did",
    "gate_diversity": "diversity of the samples as a share of the parent's",
    "gate_kept": "share of the answers that the filter kept",
    "gate_pair_gap": "mean of chosen score − rejected score of the round's pairs",
    "gate_pair_gap_ratio": "that gap as a share of the parent's",
    "gate_entropy_ratio": "entropy of the samples as a share of the parent's",
    "gate_length_ratio": "mean length of the answers as a share of the parent's",
    "gate_alignment": "change of refusal against the base",
    "gate_forgetting/<ancestor>": "share of the problems that this ancestor solved and the model does not",
    # names that begin with a judge's: last, for nearly anything is a judge's name
    "<judge>_balanced_accuracy": "mean of the shares of right gold answers that the judge passes and of wrong ones that it "
    "fails; ½ is chance",
    "<judge>_auroc": "chance that the judge scores a right gold answer above a wrong one",
    "<judge>_calibration_error": "mean distance of the judge's score from the share of right answers with that score "
    "(Guo et al. 2017)",
    "<judge>_errors": "share of the gold answers that the judge could not score",
}
"""Name → meaning, the first that fits. A word in angle brackets is a name, or what `WORDS` says."""
WORDS = {"<k>": r"\d+", "<phase>": "(?:sft|dpo|kto|nft)"}
PLACES = re.compile(r"(?P<split>validation_|gold_)?(?P<name>.+?)(?:/level_(?P<level>\d+))?")


def meaning(name: str) -> str | None:
    """What a metric means; None where nothing says so. A member of an exam or of the gates that is not named as its strategy
    has its own name in front of or behind the metric's.
    """
    place = PLACES.fullmatch(name)
    if place is None:
        return None
    text, member = _of_a_measure(place["name"])
    if text is None:
        return None
    of = [f"on the {place['split'][:-1]} set"] if place["split"] else []
    of += [f"at level {place['level']}"] if place["level"] else []
    of += [f"of the member {member}"] if member else []
    return f"{text} ({', '.join(of)})" if of else text


def markdown() -> str:
    """The table of all metrics, as docs/queries.md has it."""
    rows = (f"| `{name}` | {text[0].upper()}{text[1:]} |" for name, text in MEANINGS.items())
    return "\n".join(["| metric | meaning |", "|---|---|", *rows]) + "\n"


@cache
def _of_a_measure(name: str) -> tuple[str | None, str | None]:
    """The meaning of a measure, and the member whose name was added to it."""
    if text := _exactly(name):
        return text, None
    if name.startswith("gate_"):
        first, _, member = name.rpartition("/")
        return _exactly(first), member
    words = name.split("_")
    for n in range(1, len(words)):
        if text := _exactly("_".join(words[n:])):
            return text, "_".join(words[:n])
    return None, None


def _exactly(name: str) -> str | None:
    return next((text for pattern, text in MEANINGS.items() if _expression(pattern).fullmatch(name)), None)


@cache
def _expression(pattern: str) -> re.Pattern[str]:
    return re.compile(
        "".join(WORDS.get(p, ".+") if p.startswith("<") else re.escape(p) for p in re.split(r"(<\w+>)", pattern))
    )
