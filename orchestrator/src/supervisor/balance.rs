//! How many connections go from which worker to which.

use std::cmp::Reverse;

/// A worker's slot, and the connections that it has or is to get.
pub(crate) type Load = (u32, u64);

/// Uneven by fewer than a part of this many is even enough.
const TOLERANCE: u64 = 50;

/// Connections that go from one worker to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Move {
    pub(crate) from: u32,
    pub(crate) to: u32,
    pub(crate) connections: u64,
}

/// Shares `connections` of a worker that goes out to those that stay, so that
/// they end up as even as can be, and counts them to their loads.
pub(crate) fn share_out(connections: u64, staying: &mut [Load]) -> Vec<Load> {
    let mut shares: Vec<Load> = staying.iter().map(|(slot, _)| (*slot, 0)).collect();
    if staying.is_empty() {
        return shares;
    }
    // Up to where the lowest are filled: the highest level that there is enough
    // for.
    let needed = |level: u64| {
        let gaps = staying.iter().map(|(_, load)| level.saturating_sub(*load));
        gaps.fold(0_u64, u64::saturating_add)
    };
    let highest = staying.iter().map(|(_, load)| *load).max().unwrap_or(0);
    let (mut low, mut high) = (0, highest.saturating_add(connections));
    while low < high {
        let level = low + (high - low).div_ceil(2);
        if needed(level) <= connections {
            low = level;
        } else {
            high = level - 1;
        }
    }
    let mut rest = connections - needed(low);
    for ((_, load), (_, share)) in staying.iter_mut().zip(&mut shares) {
        *share = low.saturating_sub(*load);
        if *share + *load == low && rest > 0 {
            *share += 1;
            rest -= 1;
        }
        *load += *share;
    }
    shares.retain(|(_, share)| *share > 0);
    shares
}

/// What makes the workers even. Nothing if they are nearly so already.
pub(crate) fn even_out(loads: &[Load]) -> Vec<Move> {
    let total = loads.iter().map(|(_, load)| load).sum::<u64>();
    let Some(mean) = total.checked_div(loads.len() as u64) else {
        return Vec::new();
    };
    let mut loads = loads.to_vec();
    loads.sort_by_key(|(slot, load)| (Reverse(*load), *slot));
    // Where it does not divide, those that have most keep one more.
    let mut more = total % loads.len() as u64;
    let mut givers: Vec<Load> = Vec::new();
    let mut takers: Vec<Load> = Vec::new();
    for (slot, load) in loads {
        let goal = mean + more.min(1);
        more = more.saturating_sub(1);
        if load > goal {
            givers.push((slot, load - goal));
        } else if load < goal {
            takers.push((slot, goal - load));
        }
    }
    let is_even = |(_, difference): &Load| *difference <= 1 + mean / TOLERANCE;
    if givers.iter().chain(&takers).all(is_even) {
        return Vec::new();
    }
    let mut moves = Vec::new();
    let mut takers = takers.into_iter();
    let mut taker = takers.next();
    for (from, mut surplus) in givers {
        while surplus > 0
            && let Some((to, room)) = &mut taker
        {
            let connections = surplus.min(*room);
            moves.push(Move {
                from,
                to: *to,
                connections,
            });
            surplus -= connections;
            *room -= connections;
            if *room == 0 {
                taker = takers.next();
            }
        }
    }
    moves
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_stay_are_filled_from_the_lowest_up() {
        let mut staying = [(1, 100), (2, 10), (3, 40)];
        let shares = share_out(50, &mut staying);
        assert_eq!(shares, [(2, 40), (3, 10)]);
        assert_eq!(staying, [(1, 100), (2, 50), (3, 50)]);
        assert_eq!(share_out(7, &mut [(1, 0), (2, 0)]), [(1, 4), (2, 3)]);
        assert_eq!(share_out(7, &mut []), []);
        assert_eq!(share_out(0, &mut [(1, 5), (2, 5)]), []);
        assert_eq!(share_out(1, &mut [(1, u64::MAX - 1), (2, 0)]), [(2, 1)]);
    }

    #[test]
    fn whatever_there_is_is_shared_out_evenly() {
        for connections in 0..200 {
            let mut staying = [(1, 30), (2, 0), (3, 77), (4, 31)];
            let shares = share_out(connections, &mut staying);
            let shared: u64 = shares.iter().map(|(_, share)| share).sum();
            assert_eq!(shared, connections);
            let filled: Vec<u64> = staying
                .iter()
                .filter(|(slot, _)| shares.iter().any(|(other, _)| other == slot))
                .map(|(_, load)| *load)
                .collect();
            let (least, most) = (filled.iter().min(), filled.iter().max());
            assert!(most.unwrap_or(&0) - least.unwrap_or(&0) <= 1, "{staying:?}");
        }
    }

    fn after(loads: &[Load]) -> Vec<u64> {
        let mut loads = loads.to_vec();
        for Move {
            from,
            to,
            connections,
        } in even_out(&loads.clone())
        {
            for (slot, load) in &mut loads {
                if *slot == from {
                    *load -= connections;
                } else if *slot == to {
                    *load += connections;
                }
            }
        }
        loads.iter().map(|(_, load)| *load).collect()
    }

    #[test]
    fn a_new_worker_gets_its_part_from_all_others() {
        assert_eq!(after(&[(1, 100), (2, 100), (3, 0)]), [67, 67, 66]);
        assert_eq!(
            after(&[(1, 1000), (2, 0), (3, 0), (4, 0)]),
            [250, 250, 250, 250]
        );
        let counts = after(&[(1, 10_000), (2, 3_333), (3, 0), (4, 7)]);
        assert!(
            counts.iter().all(|count| (3_334..=3_336).contains(count)),
            "{counts:?}"
        );
    }

    #[test]
    fn workers_that_are_nearly_even_are_left_alone() {
        for loads in [
            &[][..],
            &[(1, 5)],
            &[(1, 5), (2, 6)],
            &[(1, 1000), (2, 1015), (3, 990)],
            &[(1, 0), (2, 2)],
        ] {
            assert_eq!(even_out(loads), [], "{loads:?}");
        }
    }
}
