"""What a slice says that a member owns."""

from diminuendo.structure.axis import Slice


def test_a_member_owns_its_block_at_every_offset_and_what_is_between_is_nobodys() -> None:
    assert Slice("weight", 0, 2, (0, 5)).members(2, 10).tolist() == [0, 0, 1, 1, -1, 0, 0, 1, 1, -1]
