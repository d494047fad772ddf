"""One answer, as every command gives it: a stream of tokens that is measured, logged and summed up on its way."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from edge_awq.power.monitor import Monitor
from edge_awq.runner.energy import RequestEnergy, measure_request
from edge_awq.runner.generate import GenerationSettings, Token
from edge_awq.runner.metrics import RunSummary
from edge_awq.runner.session import Session


@dataclass(frozen=True)
class Observers:
    """Who follows an answer.

    Attributes:
        meter: started, and stopped, by the caller; None measures no power.
        log: folder for a run log of each answer; None writes none.
        log_text: whether prompt and answer are logged too, not only their numbers of tokens.
    """

    meter: Monitor | None = None
    log: Path | None = None
    log_text: bool = False


class Answer:
    """A session's answer to one prompt, to be iterated over once.

    Attributes:
        tokens: those that came so far.
        energy: what they cost; of nothing before the end.
        summary: the answer in numbers once it has ended or was broken off; None before, and where no token came.
    """

    def __init__(self, session: Session, ids: Sequence[int], settings: GenerationSettings,
                 observers: Observers | None = None, prompt: str | None = None) -> None:
        """Nothing runs before the first token is asked for.

        Args:
            ids: the prompt.
            prompt: its text, for a log that may hold it.

        Raises:
            EdgeAwqError: the prompt is empty or too long.
        """
        self._session = session
        self._settings = settings
        self._observers = observers or Observers()
        self._prompt = prompt
        self._stream = session.generate(ids, settings)
        self._run_tokens = len(ids) - session.reused_tokens
        self.tokens: list[Token] = []
        self.energy = RequestEnergy()
        self.summary: RunSummary | None = None

    def __iter__(self) -> Iterator[Token]:
        session, meter, log = self._session, self._observers.meter, self._observers.log
        with session.open_log(log, self._settings, meter) if log else nullcontext() as run_log:
            stream = self._stream
            if run_log:
                stream = run_log.record(stream, self._run_tokens, session.reused_tokens)
            if meter is not None:
                meter.follow()
            started_ns = time.monotonic_ns()
            try:
                for token in stream:
                    self.tokens.append(token)
                    yield token
            finally:
                stream.close()  # the log's record ends with it, also where the answer was broken off
                self.energy = (run_log.energy if run_log else
                               measure_request(meter, started_ns, self.tokens, self._run_tokens))
                if meter is not None:
                    meter.forget()
                if self.tokens:
                    self.summary = session.summarize(self.tokens, self.energy)
            if run_log:
                if self._observers.log_text:
                    run_log.text(self._prompt, self.summary.text)
                run_log.summary(self.summary, session.memory_bandwidth_gb_s())
