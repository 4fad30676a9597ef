"""search.py: how soon it finds the largest size, from good guesses and from bad ones."""

import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from search import largest_that_fits  # noqa: E402


def found(largest, first, most, tells=lambda room: room):
    """(what is found, the sizes tried) where `largest` fits and a trial that fits tells what `tells` makes of the room that is left."""
    tried = []

    def trial(size):
        tried.append(size)
        return tells(largest - size) if size <= largest else None
    return largest_that_fits(trial, first, most), tried


class Search(unittest.TestCase):
    def test_a_guess_below_and_a_measurement_that_is_right_take_three_trials(self):
        self.assertEqual(found(80, 75, 5), (80, [75, 80, 81]))

    def test_a_guess_that_is_a_little_too_large(self):
        self.assertEqual(found(80, 82, 5), (80, [82, 76, 80, 81]))

    def test_a_law_that_is_wrong_by_far_is_noticed(self):
        self.assertEqual(found(20, 80, 5), (20, [80, 74, 37, 18, 20]))

    def test_measurements_that_tell_too_much_end_by_halving(self):
        self.assertEqual(found(80, 70, 9, tells=lambda room: 20), (80, [70, 90, 80, 89, 84, 82, 81]))

    def test_measurements_that_tell_nothing_go_on_one_by_one(self):
        self.assertEqual(found(80, 78, 9, tells=lambda room: 0), (80, [78, 79, 80, 81]))

    def test_trials_end_with_their_number(self):
        self.assertEqual(found(80, 40, 3, tells=lambda room: 1), (42, [40, 41, 42]))

    def test_nothing_fits(self):
        self.assertEqual(found(0, 5, 9)[0], 0)
        self.assertEqual(found(0, 1, 9), (0, [1]))


if __name__ == "__main__":
    unittest.main()
