"""Comparing methods at an equal budget: question, plan, cells, findings.

- The question: `question`, and `budget` and `methods`, which read what it names.
- The plan: `matrix` sizes the evaluations; `draft` lays budget and evaluations over a recipe, which
  `gauge` measures (in processes of `server`, by `measuring`); `refusals` say what speaks against
  it; `plan` joins these, `within` chooses by time, `outlook` tells people.
- The cells: `execute` gives each to the queue of `mimkit.launch`; `folder` knows where all lies,
  `watch` how far a cell is.
- The findings: `gather` reads what the cells left, `statistics` judge it, `answer` says it; the
  rest are tables, charts, pictures and the page.

`conduct` goes from the first to the last; what they hand on are `records`.
"""
