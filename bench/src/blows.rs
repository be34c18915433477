//! What is done to a cluster under load, in which order: decisions only.

use std::iter;

use super::options::Scenario;

/// One thing that is done to the cluster, which then becomes whole again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Blow {
    /// The number of brokers is changed first, and not waited for.
    pub(super) scale: Option<u32>,
    pub(super) hit: Option<Hit>,
}

/// A signal for some nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hit {
    /// SIGSTOP instead of SIGKILL.
    pub(super) stops: bool,
    pub(super) who: Who,
}

/// Whom a signal meets; numbers count on around all there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    Node(usize),
    Broker(usize),
    AllBrokers,
    /// A broker, and the next process in its slot as soon as there is one.
    BrokerAndSuccessor(usize),
}

impl Who {
    /// Processes that a signal meets when there are `brokers` brokers.
    fn count(self, brokers: u32) -> u32 {
        match self {
            Self::Node(_) | Self::Broker(_) => 1,
            Self::AllBrokers => brokers,
            Self::BrokerAndSuccessor(_) => 2,
        }
    }
}

/// All nodes in turn.
pub(super) fn in_turn(kills: u32, stops: u32) -> Vec<Blow> {
    let kills = (0..kills).map(|_| false);
    let stops = (0..stops).map(|_| true);
    let hit = |(turn, stops)| Blow {
        scale: None,
        hit: Some(Hit {
            stops,
            who: Who::Node(turn),
        }),
    };
    kills.chain(stops).enumerate().map(hit).collect()
}

/// What the scenario `kill` does to a cluster that has `brokers` brokers:
/// nothing for any other scenario.
pub(super) fn of_scenario(scenario: &Scenario, brokers: u32) -> Vec<Blow> {
    let Scenario::Kill {
        kills,
        stops,
        while_scaling,
        scale,
        ..
    } = scenario
    else {
        return Vec::new();
    };
    let (kills_default, stops_default) = if scale.is_empty() { (100, 20) } else { (0, 0) };
    let mut blows = kill_brokers(kills.unwrap_or(kills_default), brokers);
    blows.extend((0..stops.unwrap_or(stops_default)).map(|turn| Blow {
        scale: None,
        hit: Some(Hit {
            stops: true,
            who: Who::Broker(turn as usize),
        }),
    }));
    if *while_scaling {
        scale_meanwhile(&mut blows, brokers);
    }
    blows.extend(scale.iter().map(|to| Blow {
        scale: Some(*to),
        hit: None,
    }));
    blows
}

/// One broker, the next, all of them, one that is just coming back; `kills`
/// signals in all.
fn kill_brokers(kills: u32, brokers: u32) -> Vec<Blow> {
    let mut left = kills;
    let mut turn = 0;
    iter::from_fn(|| {
        let who = match turn % 4 {
            0 | 1 => Who::Broker(turn),
            2 => Who::AllBrokers,
            _ => Who::BrokerAndSuccessor(turn),
        };
        let who = if who.count(brokers) > left {
            Who::Broker(turn)
        } else {
            who
        };
        left = left.checked_sub(who.count(brokers))?;
        turn += 1;
        let hit = Some(Hit { stops: false, who });
        Some(Blow { scale: None, hit })
    })
    .collect()
}

/// Every second blow meets a cluster that is getting one broker more, or one
/// less; in the end it has as many as before.
fn scale_meanwhile(blows: &mut Vec<Blow>, brokers: u32) {
    let mut more = true;
    for blow in blows.iter_mut().step_by(2) {
        blow.scale = Some(if more { brokers + 1 } else { brokers });
        more = !more;
    }
    if !more {
        blows.push(Blow {
            scale: Some(brokers),
            hit: None,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kill(kills: Option<u32>, while_scaling: bool, scale: &[u32]) -> Scenario {
        Scenario::Kill {
            fanout: false,
            subscribers: 1,
            lobbies: 1,
            members: 1,
            rate: None,
            kills,
            stops: None,
            while_scaling,
            scale: scale.into(),
        }
    }

    fn signals(blows: &[Blow], brokers: u32, stops: bool) -> u32 {
        let hits = blows.iter().filter_map(|blow| blow.hit);
        let of_kind = hits.filter(|hit| hit.stops == stops);
        of_kind.map(|hit| hit.who.count(brokers)).sum()
    }

    #[test]
    fn there_are_exactly_as_many_kills_as_were_asked_for() {
        for brokers in 1..5 {
            for kills in 0..20 {
                let blows = of_scenario(&kill(Some(kills), false, &[]), brokers);
                assert_eq!(signals(&blows, brokers, false), kills);
                assert_eq!(signals(&blows, brokers, true), 20);
            }
        }
        let blows = of_scenario(&kill(None, false, &[]), 2);
        assert_eq!(signals(&blows, 2, false), 100);
    }

    #[test]
    fn with_a_list_of_sizes_nobody_is_killed_unless_asked_for() {
        let blows = of_scenario(&kill(None, false, &[2, 4, 3]), 2);
        let sizes: Vec<_> = blows.iter().map(|blow| blow.scale).collect();
        assert_eq!(sizes, [Some(2), Some(4), Some(3)]);
        assert!(blows.iter().all(|blow| blow.hit.is_none()));
    }

    #[test]
    fn scaling_meanwhile_ends_where_it_began() {
        for kills in 1..9 {
            let blows = of_scenario(&kill(Some(kills), true, &[]), 2);
            let sizes: Vec<_> = blows.iter().filter_map(|blow| blow.scale).collect();
            assert_eq!(sizes.first(), Some(&3));
            assert_eq!(sizes.last(), Some(&2));
            assert!(sizes.windows(2).all(|pair| pair[0] != pair[1]));
        }
    }

    #[test]
    fn all_nodes_are_met_in_turn() {
        let blows = in_turn(2, 1);
        let who: Vec<_> = blows.iter().map(|blow| blow.hit.unwrap()).collect();
        let hit = |stops, turn| Hit {
            stops,
            who: Who::Node(turn),
        };
        assert_eq!(who, [hit(false, 0), hit(false, 1), hit(true, 2)]);
    }
}
