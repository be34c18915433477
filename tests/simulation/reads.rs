//! Reads of what channels keep: calls of their own beside a link's stream, which
//! may overtake it and each other.

use muster_proto::link::{ReadRequest, ReadResponse};
use rand::RngExt as _;

use crate::{
    checker::Violation,
    cluster::{Cluster, WorkerSide, live},
};

/// One that is on its way.
#[derive(Debug)]
pub(crate) struct Read {
    worker: usize,
    id: u64,
    link: u64,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Asked(ReadRequest),
    /// `None`: the broker could not.
    Answered(Option<ReadResponse>),
}

impl Cluster {
    /// Hands a worker's reads to its links, as it does at the end of each turn.
    pub(crate) fn send_reads(&mut self, index: usize) {
        let Self { workers, links, .. } = self;
        let worker = &mut workers[index];
        let ids = &worker.links;
        let up = |slot: u32| {
            let id = *ids.get(&slot)?;
            let link = links.get(&id)?;
            (link.worker_side == WorkerSide::Up).then_some(id)
        };
        for read in worker.sim.take_reads(|slot| up(slot).is_some()) {
            let Some(link) = up(read.broker) else {
                continue;
            };
            self.reads.push(Read {
                worker: index,
                id: read.id,
                link,
                stage: Stage::Asked(read.request),
            });
        }
    }

    /// One of the reads that are on their way gets further.
    pub(crate) fn read_goes_on(&mut self) -> Result<bool, Violation> {
        self.drop_dead_reads();
        if self.reads.is_empty() {
            return Ok(false);
        }
        let picked = self.rng.random_range(0..self.reads.len());
        let Read {
            worker,
            id,
            link,
            stage,
        } = self.reads.swap_remove(picked);
        match stage {
            Stage::Asked(request) => {
                let response = match self.links.get(&link) {
                    Some(open) if !open.is_cut && open.broker_side_open => {
                        live(&mut self.brokers, open).and_then(|broker| broker.read(&request))
                    }
                    Some(_) | None => None,
                };
                self.transcript.line(self.now, || {
                    format!("link {link} answers read {id} of worker {worker}: {response:?}")
                });
                self.reads.push(Read {
                    worker,
                    id,
                    link,
                    stage: Stage::Answered(response),
                });
            }
            Stage::Answered(response) => {
                self.transcript.line(self.now, || {
                    format!("worker {worker} hears the answer to its read {id}")
                });
                let sim = &mut self.workers[worker].sim;
                sim.handle_read(id, response, self.now);
                self.end_worker_turn(worker)?;
            }
        }
        Ok(true)
    }

    /// A read ends with its link; an answer that has arrived already may still be
    /// looked at.
    fn drop_dead_reads(&mut self) {
        let links = &self.links;
        self.reads.retain(|read| {
            let is_up = links
                .get(&read.link)
                .is_some_and(|link| link.worker_side == WorkerSide::Up);
            is_up || matches!(read.stage, Stage::Answered(Some(_)))
        });
    }

    /// A worker is gone, and with it what it has asked.
    pub(crate) fn drop_reads_of(&mut self, index: usize) {
        self.reads.retain(|read| read.worker != index);
    }
}
