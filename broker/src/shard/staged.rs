//! Publications on their way into a shard's log, and the answers they get.

use std::sync::Arc;

use bytes::Bytes;
use muster_proto::link::{Publish, RefusalReason};
use muster_wire::Millis;

use crate::{keys::Last, link::Link, log::ChannelKey, turn::Turn};

/// A publication on its way into the log, and who waits for its answer.
#[derive(Debug)]
pub(super) struct Staged {
    pub(super) link: Arc<Link>,
    pub(super) seq: u64,
    pub(super) producer: Bytes,
    pub(super) n: u64,
    /// `None`: a copy of one that is known.
    pub(super) body: Option<StagedBody>,
}

#[derive(Debug)]
pub(super) struct StagedBody {
    pub(super) at: Millis,
    pub(super) key: ChannelKey,
    pub(super) data: Option<Bytes>,
    /// What was remembered of the producer.
    pub(super) before: Last,
}

impl Staged {
    pub(super) fn new(link: &Arc<Link>, publish: &Publish, body: Option<StagedBody>) -> Self {
        Self {
            link: Arc::clone(link),
            seq: publish.seq,
            producer: publish.producer.clone(),
            n: publish.n,
            body,
        }
    }
}

/// Answers on their way to links, those that follow each other as one.
#[derive(Debug, Default)]
pub(super) struct Answers(Option<Run>);

#[derive(Debug)]
struct Run {
    link: Arc<Link>,
    first_seq: u64,
    count: u64,
    outcome: Result<(), RefusalReason>,
}

impl Answers {
    pub(super) fn add(
        &mut self,
        turn: &mut Turn,
        link: Arc<Link>,
        seq: u64,
        outcome: Result<(), RefusalReason>,
    ) {
        if let Some(run) = &mut self.0
            && run.first_seq + run.count == seq
            && run.outcome == outcome
            && Arc::ptr_eq(&run.link, &link)
        {
            run.count += 1;
            return;
        }
        self.flush(turn);
        self.0 = Some(Run {
            link,
            first_seq: seq,
            count: 1,
            outcome,
        });
    }

    pub(super) fn flush(&mut self, turn: &mut Turn) {
        if let Some(run) = self.0.take() {
            run.link.settle(turn, run.first_seq, run.count, run.outcome);
        }
    }
}
