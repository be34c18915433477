//! What is done to the cluster and when: a list made from a seed.

use std::time::Duration;

use rand::{Rng, RngExt as _, seq::SliceRandom as _};

/// Between the end of one blow to a node and the next.
const REST: Duration = Duration::from_millis(1200);

/// Something bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blow {
    Kill(Victim),
    /// Stopped for so long that nobody should mind.
    Pause(Victim, Duration),
    /// Stopped until it is found to hang, and replaced.
    Hang(Victim),
    PauseOrchestrator(Duration),
    /// Killed, and after this another one is started, which takes over what lives.
    KillOrchestrator(Duration),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Victim {
    pub(crate) is_broker: bool,
    pub(crate) slot: u32,
}

/// Clients that mean no good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nuisance {
    FloodOfPublications,
    FloodOfPings,
    FloodOfSubscriptions,
    /// Connect and say nothing, half a request, or a WebSocket without more.
    HalfOpen,
    /// Subscribes to a lot and reads nothing.
    SlowReader,
    /// On the cluster's own sockets.
    Garbage,
}

/// One step: a nuisance begins, then a blow falls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) nuisance: Nuisance,
    pub(crate) blow: Blow,
    pub(crate) rest: Duration,
}

const NUISANCES: [Nuisance; 6] = [
    Nuisance::FloodOfPublications,
    Nuisance::FloodOfPings,
    Nuisance::FloodOfSubscriptions,
    Nuisance::HalfOpen,
    Nuisance::SlowReader,
    Nuisance::Garbage,
];

/// Steps without end. Each kind of blow and of nuisance comes once before any
/// comes again.
#[derive(Debug)]
pub(crate) struct Script<R> {
    rng: R,
    workers: u32,
    brokers: u32,
    blows: Vec<Blow>,
    nuisances: Vec<Nuisance>,
}

impl<R: Rng> Script<R> {
    pub(crate) fn new(rng: R, workers: u32, brokers: u32) -> Self {
        Self {
            rng,
            workers,
            brokers,
            blows: Vec::new(),
            nuisances: Vec::new(),
        }
    }

    fn blows(&mut self) -> Vec<Blow> {
        let mut blows = Vec::new();
        for is_broker in [false, true] {
            let slots = if is_broker {
                self.brokers
            } else {
                self.workers
            };
            let mut victim = || Victim {
                is_broker,
                slot: self.rng.random_range(1..=slots),
            };
            blows.extend([Blow::Kill(victim()), Blow::Hang(victim())]);
            let victim = victim();
            let pause = Duration::from_millis(self.rng.random_range(100..700));
            blows.push(Blow::Pause(victim, pause));
        }
        let mut pause = || Duration::from_millis(self.rng.random_range(100..700));
        blows.push(Blow::PauseOrchestrator(pause()));
        blows.push(Blow::KillOrchestrator(pause()));
        blows.shuffle(&mut self.rng);
        blows
    }
}

impl<R: Rng> Iterator for Script<R> {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        if self.blows.is_empty() {
            self.blows = self.blows();
        }
        if self.nuisances.is_empty() {
            self.nuisances = NUISANCES.to_vec();
            self.nuisances.shuffle(&mut self.rng);
        }
        Some(Step {
            nuisance: self.nuisances.pop()?,
            blow: self.blows.pop()?,
            rest: REST.mul_f64(self.rng.random_range(0.5..1.5)),
        })
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::StdRng};

    use super::*;

    /// Kinds of blows, of workers and brokers each.
    const BLOWS: usize = 8;

    fn steps(seed: u64) -> Vec<Step> {
        Script::new(StdRng::seed_from_u64(seed), 3, 2)
            .take(BLOWS * 2)
            .collect()
    }

    #[test]
    fn a_seed_is_a_script_and_every_kind_of_harm_is_in_it() {
        assert_eq!(steps(7), steps(7));
        assert_ne!(steps(7), steps(8));
        for seed in 0..20 {
            let steps = &steps(seed)[..BLOWS];
            let killed = |step: &Step| matches!(step.blow, Blow::KillOrchestrator(_));
            assert_eq!(steps.iter().filter(|step| killed(step)).count(), 1);
            for is_broker in [false, true] {
                let hit = |kind: fn(&Blow) -> Option<&Victim>| {
                    let victims = steps.iter().filter_map(|step| kind(&step.blow));
                    victims
                        .filter(|victim| victim.is_broker == is_broker)
                        .count()
                };
                let kinds: [fn(&Blow) -> Option<&Victim>; 3] = [
                    |blow| {
                        if let Blow::Kill(victim) = blow {
                            Some(victim)
                        } else {
                            None
                        }
                    },
                    |blow| {
                        if let Blow::Hang(victim) = blow {
                            Some(victim)
                        } else {
                            None
                        }
                    },
                    |blow| {
                        if let Blow::Pause(victim, _) = blow {
                            Some(victim)
                        } else {
                            None
                        }
                    },
                ];
                for kind in kinds {
                    assert_eq!(hit(kind), 1, "{steps:?}");
                }
            }
            for nuisance in NUISANCES {
                assert!(steps.iter().any(|step| step.nuisance == nuisance));
            }
        }
    }
}
