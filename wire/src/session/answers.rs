//! Answers in request order (delivery.md A7).

use std::collections::VecDeque;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::HistoryRead;
use crate::{CallId, ChannelName};

/// Answers that may wait beside the subscriptions' own.
pub(super) const WAITING_MAX: usize = 1024;

/// The calls that are not answered yet, and answers ready behind them.
///
/// Empty nearly always: only a subscription or a read waits for the cluster. A
/// publish is not among them; it is answered when its owner has acked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Answers {
    waiting: VecDeque<Answer>,
    /// Of those, reads that are not answered yet.
    reads: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Answer {
    Ready(#[serde(with = "crate::octets")] Bytes),
    Subscribing { cid: CallId, channel: ChannelName },
    Reading { cid: CallId, read: HistoryRead },
}

impl Answers {
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Sends an answer, or keeps it until those before it are sent.
    pub(super) fn push(&mut self, frame: Bytes, out: &mut Vec<Bytes>) {
        if self.waiting.is_empty() {
            out.push(frame);
        } else {
            self.waiting.push_back(Answer::Ready(frame));
        }
    }

    /// Keeps the place of an answer that [`Self::resolve`] will give.
    pub(super) fn wait(&mut self, cid: CallId, channel: ChannelName) {
        self.waiting.push_back(Answer::Subscribing { cid, channel });
    }

    /// Keeps the place of an answer that [`Self::resolve_read`] will give.
    pub(super) fn wait_for_read(&mut self, cid: CallId, read: HistoryRead) {
        self.reads += 1;
        self.waiting.push_back(Answer::Reading { cid, read });
    }

    /// How many reads wait for the cluster.
    pub(super) fn pending_reads(&self) -> usize {
        self.reads
    }

    /// Reads that wait for the cluster.
    pub(super) fn reads(&self) -> impl Iterator<Item = &HistoryRead> {
        self.waiting.iter().filter_map(|answer| match answer {
            Answer::Reading { read, .. } => Some(read),
            Answer::Ready(_) | Answer::Subscribing { .. } => None,
        })
    }

    /// Answers a read, then sends what is ready.
    pub(super) fn resolve_read(
        &mut self,
        id: u64,
        frame: impl FnOnce(&CallId) -> Bytes,
        out: &mut Vec<Bytes>,
    ) {
        for answer in &mut self.waiting {
            if let Answer::Reading { cid, read } = answer
                && read.id == id
            {
                *answer = Answer::Ready(frame(cid));
                self.reads -= 1;
                break;
            }
        }
        self.send_ready(out);
    }

    /// Answers everything that waits for `channel`, then sends what is ready.
    pub(super) fn resolve(
        &mut self,
        channel: &str,
        frame: impl Fn(&CallId) -> Bytes,
        out: &mut Vec<Bytes>,
    ) {
        for answer in &mut self.waiting {
            if let Answer::Subscribing {
                cid,
                channel: waiting,
            } = answer
                && &**waiting == channel
            {
                *answer = Answer::Ready(frame(cid));
            }
        }
        self.send_ready(out);
    }

    fn send_ready(&mut self, out: &mut Vec<Bytes>) {
        while let Some(Answer::Ready(_)) = self.waiting.front() {
            if let Some(Answer::Ready(frame)) = self.waiting.pop_front() {
                out.push(frame);
            }
        }
        if self.waiting.is_empty() {
            // An idle session owns no buffers.
            self.waiting = VecDeque::new();
        }
    }
}
