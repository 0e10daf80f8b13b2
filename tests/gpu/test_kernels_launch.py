"""How kernels start on a card with less shared memory than the one that their sizes were measured on."""

import pytest

from tests.support.kernels import GPU_MARK

pytestmark = GPU_MARK


class Hungry:
    """A kernel that takes so much a stage, on a card that has 99 KB."""

    def __init__(self, what: str = "shared memory", kilobytes: int = 40) -> None:
        self.tried: list[int] = []
        self._what, self._kilobytes = what, kilobytes

    def __getitem__(self, grid):
        from triton.runtime.errors import OutOfResources

        def start(*_, num_stages, **__):
            self.tried.append(num_stages)
            if num_stages * self._kilobytes > 99:
                raise OutOfResources(num_stages * self._kilobytes, 99, self._what)

        return start


def test_a_kernel_that_does_not_fit_starts_with_fewer_stages(fused):
    from service.engine.kernels.triton.launch import launch, launch_options

    kernel = Hungry()
    launch(kernel, (1,), SIZE=16, **launch_options(4, 5, is_early=False))
    assert kernel.tried == [5, 4, 3, 2]


@pytest.mark.parametrize(
    ("what", "kilobytes", "tried"), [("threads", 40, [5]), ("shared memory", 100, [5, 4, 3, 2, 1])]
)
def test_what_fewer_stages_cannot_help_is_an_error(fused, what, kilobytes, tried):
    from triton.runtime.errors import OutOfResources

    from service.engine.kernels.triton.launch import launch, launch_options

    kernel = Hungry(what, kilobytes)
    with pytest.raises(OutOfResources):
        launch(kernel, (1,), SIZE=16, **launch_options(4, 5, is_early=False))
    assert kernel.tried == tried
