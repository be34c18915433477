//! What operators read of what channels keep.

use muster_proto::{
    control::{
        HistoryEntry, HistoryPosition, HistoryRequest, HistoryResponse, HistoryResult, Reply,
        reply::Answer,
    },
    link::ReadResponse,
};
use muster_wire::{ChannelName, Position};

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
        let position = |position: HistoryPosition| Position {
            generation: position.generation,
            offset: position.offset,
        };
        let question = Question {
            channel,
            since: request.since.map(position),
            before: request.before.map(position),
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
                    history: Some(history(response)),
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

fn history(response: ReadResponse) -> HistoryResponse {
    let publications = response.publications.into_iter();
    HistoryResponse {
        head: response.head.map(|head| HistoryPosition {
            generation: head.generation,
            offset: head.offset,
        }),
        complete: response.complete,
        more: response.more,
        publications: publications
            .map(|one| HistoryEntry {
                offset: one.offset,
                data: one.data,
                time_ms: one.time_ms,
            })
            .collect(),
    }
}
