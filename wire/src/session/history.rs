//! The call `history`: a client reads what a channel keeps.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Action, Context, Effect, Host, Session, wanted_channel};
use crate::{
    CallId, ChannelName,
    answer::{self, CallError},
    position::{Generation, Position, PositionError},
};

/// Publications a client gets when it does not say how many.
const LIMIT_DEFAULT: u32 = 100;
/// Reads of one session that wait for the cluster; until one is answered nothing
/// more is read from the client.
pub(super) const READS_MAX: usize = 4;

/// A client's question for what a channel keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryRead {
    /// Tells the session's reads apart: 1, 2, 3 …
    pub id: u64,
    /// Which channel.
    pub channel: ChannelName,
    /// Only what came after this position.
    pub since: Option<Position>,
    /// Only what came before the publication at this position.
    pub before: Option<Position>,
    /// At most so many publications, at least 1.
    pub limit: u32,
    /// In that order, otherwise the oldest first.
    pub newest_first: bool,
}

/// What a channel keeps, or a part of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HistoryPage {
    /// Of the channel's newest publication; `None`: nothing was ever published.
    pub head: Option<Position>,
    /// Nothing is missing after the position that was asked for.
    pub complete: bool,
    /// There are more than fitted into the answer.
    pub more: bool,
    /// In the order that was asked for.
    pub publications: Vec<HistoryEntry>,
}

/// A publication that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryEntry {
    /// Its place in the channel.
    pub offset: u64,
    /// When it was published, in milliseconds since 1970.
    pub time_ms: i64,
    /// Raw JSON; absent is not the same as `null`.
    pub data: Option<Bytes>,
}

impl HistoryPage {
    /// As JSON; the publications' data as it came.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let data = self.publications.iter();
        let data = data.map(|one| one.data.as_ref().map_or(0, Bytes::len) + ENTRY_BYTES);
        let mut json = Vec::with_capacity(ENTRY_BYTES * 2 + data.sum::<usize>());
        let generation = self.head.map_or_else(
            || "null".to_owned(),
            |head| format!("\"{}\"", Generation(head.generation)),
        );
        let offset = self.head.map_or(0, |head| head.offset);
        let Self { complete, more, .. } = self;
        json.extend_from_slice(
            format!(
                "{{\"generation\":{generation},\"offset\":{offset},\"complete\":{complete},\
                 \"more\":{more},\"publications\":["
            )
            .as_bytes(),
        );
        for (index, entry) in self.publications.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let HistoryEntry {
                offset, time_ms, ..
            } = entry;
            json.extend_from_slice(
                format!("{comma}{{\"offset\":{offset},\"time\":{time_ms}").as_bytes(),
            );
            if let Some(data) = &entry.data {
                json.extend_from_slice(b",\"data\":");
                json.extend_from_slice(data);
            }
            json.push(b'}');
        }
        json.extend_from_slice(b"]}");
        json
    }
}

/// What an entry needs beside its data, about.
const ENTRY_BYTES: usize = 64;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Arguments<'a> {
    #[serde(borrow)]
    channel: Cow<'a, str>,
    #[serde(default, borrow)]
    since: Option<Head<'a>>,
    #[serde(default, borrow)]
    before: Option<Head<'a>>,
    #[serde(default)]
    limit: Option<u32>,
    #[serde(default)]
    order: Order,
}

/// A position, as an answer has it: also of a channel in which nothing was ever
/// published.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Head<'a> {
    #[serde(borrow)]
    generation: Option<Cow<'a, str>>,
    offset: u64,
}

/// The position in a subscription that has one; `None` where the client has none
/// yet.
pub(super) fn since(raw: &RawValue) -> Result<Option<Position>, CallError> {
    let invalid = |reason: String| {
        CallError::invalid_action(format!("Subscribe since was malformatted: {reason}"))
    };
    let head: Option<Head<'_>> =
        serde_json::from_str(raw.get()).map_err(|error| invalid(error.to_string()))?;
    let position = head.map_or(Ok(None), Head::position);
    position.map_err(|error| invalid(error.to_string()))
}

#[derive(Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Order {
    #[default]
    Oldest,
    Newest,
}

impl Head<'_> {
    fn position(self) -> Result<Option<Position>, PositionError> {
        let Some(generation) = self.generation else {
            return Ok(None);
        };
        let Generation(generation) = generation.parse()?;
        let offset = self.offset;
        Ok(Some(Position { generation, offset }))
    }
}

impl Session {
    pub(super) fn read_history(
        &mut self,
        data: Option<&RawValue>,
        cid: Option<&CallId>,
        cx: &mut Context<'_>,
    ) -> Effect<'static> {
        // Without a cid nobody waits for the answer.
        let Some(cid) = cid else {
            return Effect::Nothing;
        };
        match self.wanted_history(data, cx.host) {
            Ok(read) => {
                self.reads = read.id;
                self.answers.wait_for_read(cid.clone(), read.clone());
                Effect::Read(read)
            }
            Err(error) => self.answer_failure(Some(cid), &error, cx),
        }
    }

    fn wanted_history(
        &self,
        data: Option<&RawValue>,
        host: &dyn Host,
    ) -> Result<HistoryRead, CallError> {
        let invalid = |reason: String| CallError::invalid_action(format!("history: {reason}"));
        let raw = data.map_or("null", RawValue::get);
        let arguments: Arguments<'_> =
            serde_json::from_str(raw).map_err(|error| invalid(error.to_string()))?;
        let channel = wanted_channel(Some(arguments.channel), "History", host)?;
        self.check_right(&channel, Action::Subscribe, host)?;
        let limit_max = host
            .history_limit(&channel)
            .ok_or_else(|| CallError::no_history(&channel))?;
        let limit = arguments.limit.unwrap_or(LIMIT_DEFAULT.min(limit_max));
        if !(1..=limit_max).contains(&limit) {
            return Err(invalid(format!(
                "limit {limit} is not between 1 and {limit_max}"
            )));
        }
        let position = |head: Option<Head<'_>>| match head.map(Head::position) {
            Some(Err(error)) => Err(invalid(error.to_string())),
            Some(Ok(position)) => Ok(position),
            None => Ok(None),
        };
        Ok(HistoryRead {
            id: self.reads + 1,
            channel,
            since: position(arguments.since)?,
            before: position(arguments.before)?,
            limit,
            newest_first: arguments.order == Order::Newest,
        })
    }

    /// What came of a read. Nothing happens if it was answered already.
    pub fn answer_read(
        &mut self,
        id: u64,
        outcome: Result<&HistoryPage, &CallError>,
        cx: &mut Context<'_>,
    ) {
        let frame = |cid: &CallId| match outcome {
            Ok(page) => answer::success_with_json(cid, &page.to_json()),
            Err(error) => answer::failure(cid, error),
        };
        self.answers.resolve_read(id, frame, cx.out);
    }

    /// Reads that wait for the cluster: whoever takes the session over asks
    /// again.
    pub fn pending_reads(&self) -> impl Iterator<Item = &HistoryRead> {
        self.answers.reads()
    }
}
