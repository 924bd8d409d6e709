"""Exact bias and variance of corrections in any finite MDP: here a chain of three states that ends on the right.

Run it: python docs/exact_gradients.py
"""

import numpy as np
from scipy.special import softmax

from replaybench.analysis.bias_variance import StudyRow, cell_rows, mdp_cell, ranking
from replaybench.study import knob_estimators
from replaybench.suites.gridworld import FiniteMDP

LEFT, RIGHT = 0, 1
transition = np.zeros((3, 2, 3))
for state in (0, 1):
    transition[state, LEFT, max(state - 1, 0)] = 1.0
    transition[state, RIGHT, state + 1] = 1.0
transition[2, :, 2] = 1.0
chain = FiniteMDP(
    transition=transition,
    reward=np.array([[-1.0, -1.0], [-1.0, 2.0], [0.0, 0.0]]),
    terminal=np.array([False, False, True]),
    start=np.array([1.0, 0.0, 0.0]),
    gamma=0.95,
)
behaviour, target = softmax(np.zeros((3, 2)), axis=1), softmax(np.tile([0.0, 2.0], (3, 1)), axis=1)


def rows(state: int = 0) -> list[StudyRow]:
    """Returns every correction along its knob, for the logit of `right` in one state."""
    cell = mdp_cell(chain, target, behaviour, state=state, action_index=RIGHT)
    return cell_rows(cell, knob_estimators(), ns=(1, 64))


if __name__ == "__main__":
    for cell, ranked in ranking(rows()).items():
        print(f"{cell.n} samples")
        for rank, row in ranked[:5]:
            print(f"  {rank}. {row.baseline} {row.config}: bias^2 {row.bias2:.2g}, variance {row.variance:.2g}")
