//! The subscriber of each pool that has the fewest partitions, while these numbers change.

use super::index::{Index, Pool};

/// A tournament of the subscribers of each pool. A changed number costs `O(log m)` in each pool of the
/// member, and mostly just one comparison, since what changes nothing goes no further up. Reading the
/// winner takes one step.
#[derive(Debug)]
pub(super) struct Emptiest {
    /// By pool.
    winners: Vec<usize>,
    /// By pool: the winner of each match, as a number of a member. The final is at 1, the contestants of
    /// `at` are the winners of `2 * at` and of `2 * at + 1`, and the matches are as many as the
    /// subscribers: numbers above these are the subscribers themselves, in order. 0 is not used.
    matches: Vec<Vec<usize>>,
    /// By number of the member: the pools it is in, and its place among the subscribers of each.
    places: Vec<Vec<(usize, usize)>>,
}

impl Emptiest {
    /// The winners when members have `totals`, by their numbers.
    pub(super) fn new(index: &Index<'_>, totals: &[usize]) -> Self {
        let mut emptiest = Self {
            winners: Vec::with_capacity(index.pools.len()),
            matches: Vec::with_capacity(index.pools.len()),
            places: vec![Vec::new(); index.members.len()],
        };
        for (number, pool) in index.pools.iter().enumerate() {
            for (place, member) in pool.subscribers.iter().enumerate() {
                emptiest.places[*member].push((number, place));
            }
            let mut matches = vec![0; pool.subscribers.len()];
            for at in (1..matches.len()).rev() {
                matches[at] = play(pool, &matches, totals, at);
            }
            emptiest.winners.push(winner(pool, &matches, 1));
            emptiest.matches.push(matches);
        }
        emptiest
    }

    /// The subscriber of `pool` that has the fewest, the first in order of those.
    pub(super) fn of(&self, pool: usize) -> usize {
        self.winners[pool]
    }

    /// Takes note that the total of `member` is another.
    pub(super) fn update(&mut self, index: &Index<'_>, totals: &[usize], member: usize) {
        for (number, place) in &self.places[member] {
            let pool = &index.pools[*number];
            let matches = &mut self.matches[*number];
            let mut at = (matches.len() + place) / 2;
            while at >= 1 {
                let winner = play(pool, matches, totals, at);
                // Whoever won before and wins now has the number it had, unless it is the member.
                if matches[at] == winner && winner != member {
                    break;
                }
                matches[at] = winner;
                at /= 2;
            }
            self.winners[*number] = winner(pool, matches, 1);
        }
    }
}

/// Who comes out of the match `at`, which may be a subscriber's own place.
fn winner(pool: &Pool, matches: &[usize], at: usize) -> usize {
    match at.checked_sub(matches.len()) {
        Some(place) => pool.subscribers[place],
        None => matches[at],
    }
}

/// Who of the two contestants of the match `at` has fewer partitions.
fn play(pool: &Pool, matches: &[usize], totals: &[usize], at: usize) -> usize {
    let one = winner(pool, matches, 2 * at);
    let other = winner(pool, matches, 2 * at + 1);
    if (totals[other], other) < (totals[one], one) {
        other
    } else {
        one
    }
}
