//! What operators read of what channels keep.

use muster_proto::control::{HistoryRequest, HistoryResult, Reply, reply::Answer};
use muster_wire::{ChannelName, Position, session::HistoryPage};

use super::Engine;
use crate::reads::Question;

impl Engine {
    pub(super) fn read_for_operator(
        &mut self,
        query: u64,
        request: HistoryRequest,
    ) -> Result<(), HistoryResult> {
        let channel = ChannelName::try_from(request.channel).map_err(|error| HistoryResult {
            history: None,
            error: format!("the channel's name: {error}"),
        })?;
        let question = Question {
            channel,
            since: request.since.map(Position::from),
            before: request.before.map(Position::from),
            limit: request.limit,
            newest_first: request.newest_first,
            bytes_max: 0,
        };
        self.core.read_for_operator(query, question, self.now);
        Ok(())
    }

    /// What operators have read.
    pub(super) fn take_reads(&mut self) -> impl Iterator<Item = Reply> {
        let reads = self.core.take_operator_reads().into_iter();
        reads.map(|(id, outcome)| {
            let result = match outcome {
                Ok(response) => HistoryResult {
                    history: Some(HistoryPage::from(response).into()),
                    error: String::new(),
                },
                Err(error) => HistoryResult {
                    history: None,
                    error: error.message,
                },
            };
            let answer = Some(Answer::History(result));
            Reply { id, answer }
        })
    }
}
