//! Balanced, and as little as possible taken from those who had it.
//!
//! What counts for the balance is only how many partitions of each pool ([`index`](super::index)) a
//! member has, not which. So the numbers are settled first:
//!
//! 1. Everyone keeps what it had and may still have ([`Numbers::kept`]).
//! 2. Partitions that nobody had go one by one to the subscriber that has the fewest, pools with the
//!    fewest subscribers first, since there is the least choice for them ([`Numbers::fill`]).
//! 3. As long as a member has a partition that one with at least two fewer subscribes to, the fullest
//!    such member gives one to the emptiest that it can give one to ([`Numbers::settle`]): first only
//!    of those that nobody had, then of all. Each step makes the sum of the squares of all totals
//!    smaller, so there is an end, and there no such pair is left.
//!
//! Then partitions are found for the numbers ([`deal`]): a member keeps as many of its own in a pool as
//! its number allows, and all others are dealt out in turns, so that topics spread.
//!
//! Why no balanced assignment moves fewer where there is one pool: balanced totals are a quotient and
//! its successor, the latter for as many members as the remainder says. Step 2 raises the emptiest,
//! so whoever got something there is nobody that step 3 takes from. Step 3 takes from the fullest, so it
//! takes from nobody below the successor, and from it down to the quotient only while
//! somebody else is below the quotient: what is taken is what does not fit. With several pools it
//! can happen that another way to balance would have moved fewer.
//!
//! # Cost
//!
//! `O((s + p) log s)` for `s` subscriptions and `p` partitions. Each move of step 3 takes a look at the
//! pools its giver has something of, and `O(log m)` for each pool that giver or receiver subscribe to.
//! With one pool, moves are at most the partitions. With more, a partition can be moved several times,
//! each time to a member that has at least two fewer; that is rare, since the fullest give and the
//! emptiest get. So it is slow where all of this comes together: thousands of topics, hardly two of them
//! with the same subscribers, and most partitions to be moved.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::Assignment;
use super::emptiest::Emptiest;
use super::index::{Given, Index};

/// Divides the partitions anew, with what was assigned before in mind.
pub(super) fn assign(index: &Index<'_>) -> Assignment {
    let (mut numbers, mut owners) = Numbers::kept(index);
    numbers.fill(index);
    if numbers.may_be_uneven() {
        let mut emptiest = Emptiest::new(index, &numbers.totals);
        numbers.settle(index, &mut emptiest, Movable::Gained);
        numbers.settle(index, &mut emptiest, Movable::All);
    }
    for (owners, shares) in owners.iter_mut().zip(numbers.by_pool(index)) {
        deal(owners, &shares);
    }

    let mut given = Given::new(index);
    for topic in &index.topics {
        let owners = &owners[topic.pool][topic.first_slot..];
        for (partition, owner) in (0..topic.partitions).zip(owners) {
            let member = owner.expect("all partitions of the pool were dealt out");
            given.give(member, topic.id, partition);
        }
    }
    given.into_assignment(index)
}

/// For each partition of a pool, the number of the member that has it.
type Owners = Vec<Option<usize>>;

/// How many partitions of one pool a member has.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    /// Of those that it had before: what is taken off it below this is moved.
    kept: usize,
    /// What it is to have.
    now: usize,
}

impl Share {
    /// Whether some of it was not the member's before.
    fn has_gained(self) -> bool {
        self.now > self.kept
    }
}

/// How many partitions everyone is to have.
#[derive(Debug)]
struct Numbers {
    /// By number of the member: its shares with the numbers of their pools, in order of these. Pools
    /// that it only subscribes to are not in it.
    shares: Vec<Vec<(usize, Share)>>,
    /// By number of the member: the sum of its shares.
    totals: Vec<usize>,
}

/// What may be moved for the balance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Movable {
    /// Only what its owner did not have before.
    Gained,
    All,
}

/// One partition of `pool` from one member to another, by their numbers.
#[derive(Clone, Copy, Debug)]
struct Move {
    pool: usize,
    giver: usize,
    receiver: usize,
}

impl Numbers {
    /// Everyone has what it had before and may still have; also says which partitions these are.
    fn kept(index: &Index<'_>) -> (Self, Vec<Owners>) {
        let mut numbers = Self {
            shares: vec![Vec::new(); index.members.len()],
            totals: vec![0; index.members.len()],
        };
        let pools = index.pools.iter();
        let mut owners: Vec<Owners> = pools.map(|pool| vec![None; pool.partitions]).collect();
        for (member, (_, subscription)) in index.members.iter().enumerate() {
            for (id, partitions) in subscription.previous {
                let Some(topic) = index.topic(id) else {
                    continue;
                };
                if !subscription.topics.contains(id) {
                    continue;
                }
                for slot in partitions.iter().filter_map(|number| topic.slot(*number)) {
                    let owner = &mut owners[topic.pool][slot];
                    if owner.is_none() {
                        *owner = Some(member);
                        numbers.add(member, topic.pool).kept += 1;
                    }
                }
            }
        }
        (numbers, owners)
    }

    /// Adds the partitions that nobody had.
    fn fill(&mut self, index: &Index<'_>) {
        let mut left: Vec<_> = index.pools.iter().map(|pool| pool.partitions).collect();
        for (pool, share) in self.shares.iter().flatten() {
            left[*pool] -= share.now;
        }
        let mut pools: Vec<_> = (0..left.len()).filter(|pool| left[*pool] > 0).collect();
        pools.sort_by_key(|pool| index.pools[*pool].subscribers.len());
        for pool in pools {
            let subscribers = index.pools[pool].subscribers.iter();
            let mut emptiest: BinaryHeap<_> = subscribers
                .map(|member| Reverse((self.totals[*member], *member)))
                .collect();
            for _ in 0..left[pool] {
                let mut top = emptiest.peek_mut().expect("a pool has subscribers");
                let Reverse((total, member)) = &mut *top;
                *total += 1;
                self.add(*member, pool);
            }
        }
    }

    /// Whether there are any two members whose totals differ by at least two.
    fn may_be_uneven(&self) -> bool {
        let most = self.totals.iter().max();
        let fewest = self.totals.iter().min();
        most.zip(fewest)
            .is_some_and(|(most, fewest)| *most >= fewest + 2)
    }

    /// Moves what is `movable` until no move makes the balance better. `emptiest` is up to date before
    /// and after.
    fn settle(&mut self, index: &Index<'_>, emptiest: &mut Emptiest, movable: Movable) {
        let mut has_moved = true;
        // Who can give nothing is not looked at again in the same round, though one that gives later may
        // come to be empty enough to get something from it.
        while has_moved {
            has_moved = false;
            let totals = self.totals.iter().copied().enumerate();
            let mut fullest: BinaryHeap<_> = totals
                .map(|(member, total)| (total, Reverse(member)))
                .collect();
            while let Some((total, Reverse(giver))) = fullest.pop() {
                // One whose total is another by now is in the heap under that, too.
                if total != self.totals[giver] {
                    continue;
                }
                let Some(found) = self.best_move(emptiest, movable, giver) else {
                    continue;
                };
                has_moved = true;
                self.take(found.giver, found.pool);
                self.add(found.receiver, found.pool);
                for member in [found.giver, found.receiver] {
                    emptiest.update(index, &self.totals, member);
                    fullest.push((self.totals[member], Reverse(member)));
                }
            }
        }
    }

    /// What `giver` should give, and to whom: to the emptiest that it can give anything, and what was
    /// not its own before if that makes no difference. `None` if nothing that it can give makes the
    /// balance better.
    fn best_move(&self, emptiest: &Emptiest, movable: Movable, giver: usize) -> Option<Move> {
        let shares = self.shares[giver].iter();
        let movable = shares.filter(|(_, share)| match movable {
            Movable::Gained => share.has_gained(),
            Movable::All => share.now > 0,
        });
        let ranked = movable.map(|(pool, share)| {
            let receiver = emptiest.of(*pool);
            let rank = (self.totals[receiver], !share.has_gained());
            (rank, *pool, receiver)
        });
        let ((fewest, _), pool, receiver) = ranked.min()?;
        (self.totals[giver] >= fewest + 2).then_some(Move {
            pool,
            giver,
            receiver,
        })
    }

    /// Gives `member` one more partition of `pool`.
    fn add(&mut self, member: usize, pool: usize) -> &mut Share {
        self.totals[member] += 1;
        let shares = &mut self.shares[member];
        let at = match shares.binary_search_by_key(&pool, |(pool, _)| *pool) {
            Ok(at) => at,
            Err(at) => {
                shares.insert(at, (pool, Share::default()));
                at
            }
        };
        let (_, share) = &mut shares[at];
        share.now += 1;
        share
    }

    /// Takes one partition of `pool` off `member`, which has one.
    fn take(&mut self, member: usize, pool: usize) {
        self.totals[member] -= 1;
        let shares = &mut self.shares[member];
        let at = shares
            .binary_search_by_key(&pool, |(pool, _)| *pool)
            .expect("who gives has a share");
        shares[at].1.now -= 1;
    }

    /// The shares of each pool, with the numbers of the members that have them, in order of these.
    fn by_pool(&self, index: &Index<'_>) -> Vec<Vec<(usize, Share)>> {
        let mut by_pool = vec![Vec::new(); index.pools.len()];
        for (member, shares) in self.shares.iter().enumerate() {
            for (pool, share) in shares {
                by_pool[*pool].push((member, *share));
            }
        }
        by_pool
    }
}

/// Finds partitions of one pool for the numbers of its members: each keeps as many of its own as it
/// may, and all others go round to those who are to have more.
fn deal(owners: &mut Owners, shares: &[(usize, Share)]) {
    // Who has to give some up gives them from all over the list, not whole topics from its end.
    let mut seen = vec![0; shares.len()];
    for owner in &mut *owners {
        let Some(member) = *owner else { continue };
        let at = shares
            .binary_search_by_key(&member, |(member, _)| *member)
            .expect("who had a partition has a share, be it of none");
        let Share { kept, now } = shares[at].1;
        let before = seen[at];
        seen[at] += 1;
        if now < kept && before * now / kept == (before + 1) * now / kept {
            *owner = None;
        }
    }
    let gained = shares.iter().filter(|(_, share)| share.has_gained());
    let mut gained: VecDeque<_> = gained
        .map(|(member, share)| (*member, share.now - share.kept))
        .collect();
    for owner in owners.iter_mut().filter(|owner| owner.is_none()) {
        let (member, missing) = gained
            .pop_front()
            .expect("the numbers of a pool add up to its partitions");
        *owner = Some(member);
        if missing > 1 {
            gained.push_back((member, missing - 1));
        }
    }
}
