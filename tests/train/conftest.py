"""A small parent that speaks the arithmetic domain's roles, hardly trained."""

from contextlib import contextmanager

import pytest


@pytest.fixture(scope="session")
def parent(embedded_model):
    return embedded_model


@pytest.fixture
def in_float32(monkeypatch):
    """Trainers that compute in float32, where sums of another order agree in more than three digits."""
    from tasks.training import loop

    arguments = loop.arguments
    monkeypatch.setattr(loop, "arguments", lambda *schedule: arguments(*schedule) | {"bf16": False})


@pytest.fixture
def stopped_halfway(monkeypatch):
    """Where a training is interrupted, once, in the step after its second checkpoint."""
    from tasks.training import loop

    @contextmanager
    def stopping():
        watch = loop.watch

        def stopper():
            callback = watch()
            saved, save = [], callback.on_save

            def on_save(args, state, control, **more):
                save(args, state, control, **more)
                saved.append(state.global_step)

            def on_step_end(args, state, control, **_):
                if len(saved) > 1:
                    raise KeyboardInterrupt
                return control

            callback.on_save, callback.on_step_end = on_save, on_step_end
            return callback

        with monkeypatch.context() as patch:
            patch.setattr(loop, "watch", stopper)
            yield

    return stopping
