"""What a surrogate sees of a batch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from replaybench.errors import ContractError
from replaybench.maths.ratios import categorical_kl


@dataclass(frozen=True, kw_only=True)
class Items:
    """What a surrogate sees: B decisions of A items each (A=1 at step granularity).

    Args:
        log_pi: [B, A] log-probability of the logged action under the current policy; carries the gradient.
        log_mu: [B, A] the same under the behaviour policy, as logged.
        advantage: [B, A] advantage of the decision, the same for all its items.
        mask: [B, A] bool, False where an item must not count.
        logits: [B, T, K] the current policy's logits of the T action tokens; they carry a gradient too.
        mu_logits: [B, T, K] the behaviour policy's, as logged.
        log_prox: [B, A] log-probability under the proximal policy, a recent copy of the current one.
        lag_updates: [B] optimiser updates between the behaviour policy and the current one.
        episode: [B] number of the episode that a decision belongs to; whole episodes, in order.

    A surrogate finds the last five only if its file declares that it needs them.
    """

    log_pi: Tensor
    log_mu: Tensor
    advantage: Tensor
    mask: Tensor
    logits: Tensor | None = None
    mu_logits: Tensor | None = None
    log_prox: Tensor | None = None
    lag_updates: Tensor | None = None
    episode: Tensor | None = None

    @property
    def log_ratio(self) -> Tensor:
        """l = log pi - log mu, [B, A], with gradient."""
        return self.log_pi - self.log_mu

    @property
    def kl_behaviour(self) -> Tensor:
        """Exact KL(mu||pi) of each item, [B, A], in nats, with gradient; summed over tokens at step granularity."""
        return self._per_item(categorical_kl(self._mu_logits(), self._logits()))

    @property
    def kl_current(self) -> Tensor:
        """Exact KL(pi||mu) of each item, [B, A], in nats, with gradient; summed over tokens at step granularity."""
        return self._per_item(categorical_kl(self._logits(), self._mu_logits()))

    def proximal(self) -> Tensor:
        """Returns log_prox, which the file must have declared as a need."""
        return _declared(self.log_prox, "log_prox")

    def lag(self) -> Tensor:
        """Returns lag_updates as a column, [B, 1], which the file must have declared as a need."""
        return _declared(self.lag_updates, "lag_updates").unsqueeze(-1)

    def over_episode(self, values: Tensor) -> Tensor:
        """Returns the sum of [B, A] values over all valid items of each item's episode, [B, 1], with gradient."""
        episode = _declared(self.episode, "episodes")
        per_step = torch.where(self.mask, values, 0.0).sum(-1)
        _, group = torch.unique(episode, return_inverse=True)
        totals = torch.zeros(int(group.max()) + 1, dtype=values.dtype, device=values.device)
        return totals.index_add(0, group, per_step)[group].unsqueeze(-1)

    def mean_over_episode(self, values: Tensor) -> Tensor:
        """Returns the mean of [B, A] values over all valid items of each item's episode, [B, 1], with gradient."""
        return self.over_episode(values) / self.over_episode(torch.ones_like(values)).clamp(min=1)

    def each_episode(self, values: Tensor) -> Tensor:
        """Returns the sum of [B, A] values over the valid items of each episode that has any, [E], one an episode."""
        is_valid = self.mask.any(-1)
        per_step = torch.where(self.mask, values, 0.0).sum(-1)[is_valid]
        _, group = torch.unique(_declared(self.episode, "episodes")[is_valid], return_inverse=True)
        return torch.zeros(int(group.max()) + 1, dtype=values.dtype, device=values.device).index_add(0, group, per_step)

    def _logits(self) -> Tensor:
        return _declared(self.logits, "mu_logits")

    def _mu_logits(self) -> Tensor:
        return _declared(self.mu_logits, "mu_logits").to(self._logits().dtype)

    def _per_item(self, per_token: Tensor) -> Tensor:
        return per_token if per_token.shape == self.log_pi.shape else per_token.sum(-1, keepdim=True)


def _declared(column: Tensor | None, need: str) -> Tensor:
    if column is None:
        raise ContractError(f"The surrogate reads '{need}'; its file must name it in DECLARATION.needs.")
    return column
