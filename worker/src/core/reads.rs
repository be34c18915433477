//! Clients and operators read what channels keep.

use muster_proto::link::ReadResponse;
use muster_wire::{
    answer::CallError,
    session::{HistoryPage, HistoryRead, Session},
};

use super::{Clients, Core, Now};
use crate::{
    connection::ConnectionKey,
    reads::{Question, Reader, ReadsFull},
};

use bytes::Bytes;

/// What an operator's read has found, by the id of his query.
pub(crate) type OperatorRead = (u64, Result<ReadResponse, CallError>);

impl Core {
    /// Asks the channel's owner; the session is answered once that has.
    pub(super) fn read_for_client(
        &mut self,
        key: ConnectionKey,
        session: &mut Session,
        read: HistoryRead,
        out: &mut Vec<Bytes>,
        now: Now,
    ) {
        let question = Question {
            channel: read.channel,
            since: read.since,
            before: read.before,
            limit: read.limit,
            newest_first: read.newest_first,
            bytes_max: self.names.history_bytes_max,
        };
        let reader = Reader::Client(key, read.id);
        if let Err(ReadsFull) = self.reads.ask(now.millis, question, reader) {
            let error = busy();
            self.with_session(out, now, |cx| session.answer_read(read.id, Err(&error), cx));
        }
    }

    /// Reads for an operator; [`Self::take_operator_reads`] has what was found.
    pub(crate) fn read_for_operator(&mut self, query: u64, question: Question, now: Now) {
        let reader = Reader::Operator(query);
        if let Err(ReadsFull) = self.reads.ask(now.millis, question, reader) {
            self.operator_reads.push((query, Err(busy())));
        }
    }

    pub(crate) fn take_operator_reads(&mut self) -> Vec<OperatorRead> {
        std::mem::take(&mut self.operator_reads)
    }

    /// A broker's answer; `None` if it has none now.
    pub(crate) fn handle_read(
        &mut self,
        id: u64,
        response: Option<ReadResponse>,
        clients: &mut impl Clients,
        now: Now,
    ) {
        if let Some((reader, question, response)) = self.reads.answered(id, response) {
            self.answer_reader((reader, &question), Ok(response), clients, now);
        }
    }

    /// Answers those who have waited too long.
    pub(super) fn give_up_reads(&mut self, clients: &mut impl Clients, now: Now) {
        for (reader, question) in self.reads.handle_tick(now.millis) {
            self.answer_reader((reader, &question), Err(late()), clients, now);
        }
    }

    fn answer_reader(
        &mut self,
        (reader, question): (Reader, &Question),
        outcome: Result<ReadResponse, CallError>,
        clients: &mut impl Clients,
        now: Now,
    ) {
        match reader {
            Reader::Follower(key) => {
                if let Some(since) = question.since {
                    let read = (since, outcome.ok());
                    self.catch_up(&question.channel, key, read, clients, now);
                }
            }
            Reader::Operator(query) => self.operator_reads.push((query, outcome)),
            Reader::Client(key, id) => {
                let Some(session) = clients.session(key) else {
                    return;
                };
                let outcome = outcome.map(HistoryPage::from);
                let mut out = std::mem::take(&mut self.out);
                self.with_session(&mut out, now, |cx| {
                    session.answer_read(id, outcome.as_ref(), cx);
                });
                clients.send(key, &mut out);
                self.out = out;
            }
        }
    }
}

fn busy() -> CallError {
    CallError::history_unavailable("Too many reads of histories are under way; try again")
}

fn late() -> CallError {
    CallError::history_unavailable("The channel's owner did not answer in time; try again")
}
