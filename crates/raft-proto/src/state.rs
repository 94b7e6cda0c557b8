//! What is said of configurations.

use std::collections::BTreeSet;

use crate::eraftpb::ConfState;

/// Whether the two name the same members in the same roles, in whatever order.
#[must_use]
pub fn conf_state_eq(a: &ConfState, b: &ConfState) -> bool {
    let set = |ids: &[u64]| ids.iter().copied().collect::<BTreeSet<_>>();
    set(&a.voters) == set(&b.voters)
        && set(&a.learners) == set(&b.learners)
        && set(&a.voters_outgoing) == set(&b.voters_outgoing)
        && set(&a.learners_next) == set(&b.learners_next)
        && a.auto_leave == b.auto_leave
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_members_means_nothing_and_their_roles_do() {
        let of = |voters: &[u64], learners: &[u64]| {
            ConfState::from((voters.to_vec(), learners.to_vec()))
        };
        assert!(conf_state_eq(
            &of(&[1, 2, 3], &[4, 5]),
            &of(&[3, 1, 2], &[5, 4])
        ));
        assert!(!conf_state_eq(&of(&[1, 2, 3], &[]), &of(&[1, 2], &[3])));
        assert!(!conf_state_eq(&of(&[1, 2, 3], &[]), &of(&[1, 2], &[])));
        let left = ConfState {
            auto_leave: true,
            ..of(&[1], &[])
        };
        assert!(!conf_state_eq(&of(&[1], &[]), &left));
    }
}
