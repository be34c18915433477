//! Reads of what channels keep: which wait, which are asked, which take too long.
//! Pure; the engine brings them to the owners.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use muster_proto::{
    ShardId,
    link::{self, ReadRequest, ReadResponse},
    shard_of,
};
use muster_wire::{ChannelName, Millis, Position};

use crate::connection::ConnectionKey;

/// How long a read may take, whatever happens to brokers meanwhile. Shorter than
/// the orchestrator waits for a worker.
const READ_TIMEOUT: Duration = Duration::from_secs(4);
/// Reads of one worker beyond which new ones are refused.
const READS_MAX: usize = 4096;

/// Reads on their way, of all connections and of operators.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    last_id: u64,
    /// By id, hence by age.
    open: BTreeMap<u64, Open>,
    /// Are to be sent.
    queue: VecDeque<u64>,
    /// Are to be sent again after a while.
    resting: Vec<u64>,
}

#[derive(Debug)]
struct Open {
    question: Question,
    reader: Reader,
    until: Millis,
    /// The broker that was asked.
    asked: Option<u32>,
}

/// What is asked of a channel's owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) channel: ChannelName,
    pub(crate) since: Option<Position>,
    pub(crate) before: Option<Position>,
    pub(crate) limit: u32,
    pub(crate) newest_first: bool,
    /// Bytes of data; 0: as many as the broker gives.
    pub(crate) bytes_max: u64,
}

/// Who waits for the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reader {
    /// A client; the number is its session's for this read.
    Client(ConnectionKey, u64),
    /// An operator, by the id of his query.
    Operator(u64),
    /// A subscriber that gets what it missed.
    Follower(ConnectionKey),
}

/// As many reads wait as may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReadsFull;

impl Question {
    pub(crate) fn shard(&self) -> ShardId {
        shard_of(&*self.channel)
    }

    pub(crate) fn request(&self) -> ReadRequest {
        ReadRequest {
            channel: Bytes::copy_from_slice(self.channel.as_bytes()),
            after: self.since.map(link::Position::from),
            before: self.before.map(link::Position::from),
            limit: self.limit,
            bytes_max: self.bytes_max,
            newest_first: self.newest_first,
        }
    }
}

impl Reads {
    /// Takes a read in, which ends in [`Self::answered`] or
    /// [`Self::handle_tick`].
    pub(crate) fn ask(
        &mut self,
        now: Millis,
        question: Question,
        reader: Reader,
    ) -> Result<(), ReadsFull> {
        if self.open.len() >= READS_MAX {
            return Err(ReadsFull);
        }
        self.last_id += 1;
        let open = Open {
            question,
            reader,
            until: now + READ_TIMEOUT,
            asked: None,
        };
        self.open.insert(self.last_id, open);
        self.queue.push_back(self.last_id);
        Ok(())
    }

    /// Reads that are not answered.
    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }

    /// Offers every read that is to be sent; `send` says which broker has it, if
    /// it could be sent.
    pub(crate) fn send(&mut self, mut send: impl FnMut(u64, &Question) -> Option<u32>) {
        let open = &mut self.open;
        self.queue.retain(|id| {
            let Some(read) = open.get_mut(id) else {
                return false;
            };
            read.asked = send(*id, &read.question);
            read.asked.is_none()
        });
        if self.queue.is_empty() {
            self.queue = VecDeque::new();
        }
    }

    /// A broker's answer, or that it has none now: then it is asked again.
    pub(crate) fn answered(
        &mut self,
        id: u64,
        response: Option<ReadResponse>,
    ) -> Option<(Reader, Question, ReadResponse)> {
        let read = self.open.get_mut(&id)?;
        // Of a broker that was asked before, and again since.
        read.asked?;
        match response {
            Some(response) => {
                let read = self.open.remove(&id)?;
                Some((read.reader, read.question, response))
            }
            None => {
                read.asked = None;
                self.resting.push(id);
                None
            }
        }
    }

    /// What this broker was asked it will not answer any more.
    pub(crate) fn link_down(&mut self, broker: u32) {
        for (id, read) in &mut self.open {
            if read.asked == Some(broker) {
                read.asked = None;
                self.queue.push_back(*id);
            }
        }
    }

    /// Asks again what rested; returns those whose reads took too long.
    pub(crate) fn handle_tick(&mut self, now: Millis) -> Vec<(Reader, Question)> {
        self.queue.extend(self.resting.drain(..));
        let mut late = Vec::new();
        while let Some(first) = self.open.first_entry()
            && first.get().until <= now
        {
            let read = first.remove();
            late.push((read.reader, read.question));
        }
        late
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Millis = Millis(1000);

    fn question(channel: &str) -> Question {
        Question {
            channel: ChannelName::try_from(channel).unwrap(),
            since: None,
            before: None,
            limit: 7,
            newest_first: true,
            bytes_max: 100,
        }
    }

    fn response(offset: u64) -> ReadResponse {
        let generation = 1;
        ReadResponse {
            head: Some(link::Position { generation, offset }),
            ..ReadResponse::default()
        }
    }

    fn ask(reads: &mut Reads, now: Millis, query: u64) {
        let reader = Reader::Operator(query);
        assert_eq!(reads.ask(now, question("a"), reader), Ok(()));
    }

    /// The ids that were offered.
    fn send(reads: &mut Reads, broker: Option<u32>) -> Vec<u64> {
        let mut offered = Vec::new();
        reads.send(|id, _| {
            offered.push(id);
            broker
        });
        offered
    }

    #[test]
    fn a_read_is_sent_once_its_owner_can_be_reached_and_answered_once() {
        let mut reads = Reads::default();
        ask(&mut reads, NOW, 5);
        assert_eq!(send(&mut reads, None), [1]);
        assert_eq!(send(&mut reads, Some(1)), [1]);
        assert_eq!(send(&mut reads, Some(1)), [0; 0]);
        let answered = reads.answered(1, Some(response(9)));
        assert_eq!(
            answered,
            Some((Reader::Operator(5), question("a"), response(9)))
        );
        assert_eq!(reads.answered(1, Some(response(9))), None);
        assert!(reads.handle_tick(NOW + READ_TIMEOUT).is_empty());
    }

    #[test]
    fn a_read_outlives_its_broker_and_is_asked_again() {
        let mut reads = Reads::default();
        ask(&mut reads, NOW, 5);
        ask(&mut reads, NOW, 6);
        send(&mut reads, Some(1));
        reads.link_down(2);
        assert_eq!(send(&mut reads, Some(2)), [0; 0]);
        reads.link_down(1);
        // What was on its way is nobody's, or the same.
        assert_eq!(reads.answered(1, Some(response(9))), None);
        assert_eq!(send(&mut reads, Some(2)), [1, 2]);
        assert_eq!(
            reads.answered(2, Some(response(9))),
            Some((Reader::Operator(6), question("a"), response(9)))
        );
    }

    #[test]
    fn a_broker_that_is_not_the_owner_is_asked_again_with_the_next_tick() {
        let mut reads = Reads::default();
        ask(&mut reads, NOW, 5);
        send(&mut reads, Some(1));
        assert_eq!(reads.answered(1, None), None);
        assert_eq!(send(&mut reads, Some(1)), [0; 0]);
        assert!(reads.handle_tick(NOW).is_empty());
        assert_eq!(send(&mut reads, Some(1)), [1]);
    }

    #[test]
    fn a_read_that_nobody_answers_ends_in_time_wherever_it_is() {
        let mut reads = Reads::default();
        ask(&mut reads, NOW, 5);
        send(&mut reads, Some(1));
        ask(&mut reads, NOW + Duration::from_secs(1), 6);
        assert_eq!(
            reads.handle_tick(NOW + READ_TIMEOUT),
            [(Reader::Operator(5), question("a"))],
            "sent"
        );
        let late = NOW + READ_TIMEOUT + Duration::from_secs(1);
        assert_eq!(
            reads.handle_tick(late),
            [(Reader::Operator(6), question("a"))],
            "queued"
        );
        assert_eq!(send(&mut reads, Some(1)), [0; 0]);
        assert_eq!(reads.answered(1, Some(response(9))), None);
    }

    #[test]
    fn reads_are_bounded() {
        let mut reads = Reads::default();
        for query in 0..READS_MAX as u64 {
            ask(&mut reads, NOW, query);
        }
        let more = reads.ask(NOW, question("a"), Reader::Operator(0));
        assert_eq!(more, Err(ReadsFull));
        assert_eq!(reads.handle_tick(NOW + READ_TIMEOUT).len(), READS_MAX);
        ask(&mut reads, NOW, 0);
    }

    #[test]
    fn a_question_is_asked_as_it_was() {
        let at = |offset| Position {
            generation: 3,
            offset,
        };
        let question = Question {
            since: Some(at(4)),
            before: Some(at(9)),
            ..question("lobby")
        };
        let request = question.request();
        assert_eq!(&request.channel[..], b"lobby");
        assert_eq!(request.after.map(|after| after.offset), Some(4));
        assert_eq!(request.before.map(|before| before.generation), Some(3));
        assert_eq!((request.limit, request.bytes_max), (7, 100));
        assert!(request.newest_first);
    }
}
