"""SIGTERM and SIGINT during training: finish the step, save a checkpoint, stop."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class SignalWatch:
    """Takes the first of SIGNALS between `start` and `restore`, and calls `notify`.

    That signal restores the previous handlers, so that a second one ends the process as usual. Threads other than the
    main one may not set handlers: there, signals keep their effect.
    """

    def __init__(self, notify: Callable[[], None]) -> None:
        self.notify = notify
        self.received: str | None = None  # the signal's name
        self.previous: dict[int, Any] = {}

    def start(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self.previous = {number: signal.signal(number, self.receive) for number in SIGNALS}

    def receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        self.restore()
        self.notify()

    def restore(self) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous = {}


class Interruption(TrainerCallback):
    """Asks the Trainer for a checkpoint and a stop at the end of the step in which the first signal arrives."""

    def __init__(self) -> None:
        self.watch = SignalWatch(lambda: None)
        self.received: str | None = None  # by this process or, once a step has ended, by any of them

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.watch.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.received = self.received_anywhere(args)
        if self.received:
            control.should_save = control.should_training_stop = True

    def received_anywhere(self, args: Any) -> str | None:
        """The signal, if any of the training's processes received one: all must stop after the same step."""
        if args.world_size == 1:
            return self.watch.received
        flag = torch.tensor([float(self.watch.received is not None)], device=args.device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return (self.watch.received or "a signal") if flag.item() else None
