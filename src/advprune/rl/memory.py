"""What an agent remembers: a ring of transitions, and the running spread of what it saw."""

from dataclasses import dataclass

import torch

State = dict[str, torch.Tensor]


@dataclass
class Batch:
    """Transitions: states `[B, ...]`, actions, rewards, next states, whether the episode ended."""

    states: torch.Tensor
    actions: torch.Tensor
    rewards: torch.Tensor
    following: torch.Tensor
    ended: torch.Tensor

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        return Batch(**{name: value.to(device) for name, value in vars(self).items()})


class Memory:
    """The last `capacity` transitions; the oldest are overwritten."""

    def __init__(self, capacity: int, state: torch.Tensor) -> None:
        """state: any one, for shape and type."""
        empty = torch.zeros((capacity, *state.shape), dtype=state.dtype)
        self.capacity, self.added = capacity, 0
        self.rows = Batch(
            states=empty,
            actions=torch.zeros(capacity, dtype=torch.long),
            rewards=torch.zeros(capacity),
            following=empty.clone(),
            ended=torch.zeros(capacity, dtype=torch.bool),
        )

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(
        self,
        state: torch.Tensor,
        action: int,
        reward: float,
        following: torch.Tensor,
        ended: bool,
    ) -> None:
        """Remember a transition. ended: the state after it is final, so nothing more is earned."""
        row = self.added % self.capacity
        self.rows.states[row], self.rows.following[row] = state, following
        self.rows.actions[row], self.rows.rewards[row] = action, reward
        self.rows.ended[row] = ended
        self.added += 1

    def sample(self, size: int, generator: torch.Generator) -> Batch:
        """`size` transitions, drawn evenly with replacement."""
        chosen = torch.randint(len(self), (size,), generator=generator)
        return Batch(**{name: value[chosen] for name, value in vars(self.rows).items()})

    def state(self) -> State:
        """All of it, for a file."""
        kept = {name: value[: len(self)].clone() for name, value in vars(self.rows).items()}
        return {**kept, "added": torch.tensor(self.added)}

    def restore(self, state: State) -> None:
        """Take up a stored state."""
        for name, value in vars(self.rows).items():
            value[: len(state[name])] = state[name]
        self.added = int(state["added"])


class Spread:
    """Running mean and standard deviation of each observed number (Welford 1962)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.count = 0
        self.mean = torch.zeros(shape, dtype=torch.double)
        self.squares = torch.zeros(shape, dtype=torch.double)

    def add(self, observation: torch.Tensor) -> None:
        """m' = m + (x - m) / n; S' = S + (x - m) (x - m')."""
        self.count += 1
        before = observation.double() - self.mean
        self.mean = self.mean + before / self.count
        self.squares = self.squares + before * (observation.double() - self.mean)

    def std(self) -> torch.Tensor:
        """Standard deviation; 1 where a number never changed."""
        std = (self.squares / max(self.count, 1)).sqrt()
        return torch.where(std > 1e-6, std, 1.0)

    def state(self) -> State:
        """All of it, for a file."""
        return {"count": torch.tensor(self.count), "mean": self.mean, "squares": self.squares}

    def restore(self, state: State) -> None:
        """Take up a stored state."""
        self.count = int(state["count"])
        self.mean, self.squares = state["mean"], state["squares"]
