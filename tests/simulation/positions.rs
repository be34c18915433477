//! What must hold for those who know where they are: followers get everything
//! after their position or are told that they do not, and what a channel keeps is
//! read as it was published (delivery.md B6, B7).

use std::{collections::BTreeMap, time::Duration};

use muster_wire::Millis;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    checker::{Checker, Violation},
    client::publication_id,
};

/// What is read for a follower takes so long at most, or counts as not kept.
const READ_TIMEOUT: Duration = Duration::from_secs(4);

/// A place in a channel's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) generation: u64,
    pub(crate) offset: u64,
}

/// What a follower hears of its channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum News {
    Publication {
        offset: u64,
        id: u64,
    },
    /// Something before this position is missing.
    Hole(Position),
}

/// A subscriber that wants positions.
#[derive(Debug)]
pub(crate) struct Follower {
    cid: u64,
    client: usize,
    since: Option<Position>,
    asked: Millis,
    /// What it heard before the answer to its subscription.
    early: Vec<News>,
    /// Where it is, once its subscription is answered.
    place: Option<Position>,
    /// When it was told of a hole last, or began.
    whole_since: Millis,
}

/// A question for what a channel keeps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Question {
    pub(crate) channel: usize,
    pub(crate) since: Option<Position>,
    pub(crate) limit: u32,
    pub(crate) newest_first: bool,
}

/// It has reached a worker.
#[derive(Debug)]
pub(crate) struct Asked {
    question: Question,
    at: Millis,
    /// Where the channel's log ended then.
    end: Option<Position>,
}

/// The answer.
#[derive(Debug, Deserialize)]
struct Page {
    generation: Option<String>,
    offset: u64,
    complete: bool,
    more: bool,
    publications: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
struct Entry {
    offset: u64,
    data: Option<String>,
}

/// Of everybody who knows where he is.
#[derive(Debug, Default)]
pub(crate) struct Positions {
    /// By connection and channel.
    followers: BTreeMap<(u64, usize), Follower>,
    /// By connection and call.
    asked: BTreeMap<(u64, u64), Asked>,
    /// The last position of each client's in each channel.
    known: BTreeMap<(usize, usize), Position>,
    /// Publications that channels keep, whatever their age.
    history: Option<u64>,
}

impl Positions {
    pub(crate) fn new(history: Option<u64>) -> Self {
        Self {
            history,
            ..Self::default()
        }
    }

    /// Where a client was in a channel when it heard of it last.
    pub(crate) fn known(&self, client: usize, channel: usize) -> Option<Position> {
        self.known.get(&(client, channel)).copied()
    }

    pub(crate) fn left(&mut self, connection: u64) {
        self.followers.retain(|(other, _), _| *other != connection);
        self.asked.retain(|(other, _), _| *other != connection);
    }

    pub(crate) fn unfollows(&mut self, connection: u64, channel: usize) {
        self.followers.remove(&(connection, channel));
    }
}

impl Checker {
    /// A client's subscription that wants positions reaches its worker.
    pub(crate) fn follows(
        &mut self,
        (client, connection): (usize, u64),
        (channel, cid): (usize, u64),
        since: Option<Position>,
        now: Millis,
    ) {
        let follower = Follower {
            cid,
            client,
            since,
            asked: now,
            early: Vec::new(),
            place: None,
            whole_since: now,
        };
        let followers = &mut self.positions.followers;
        followers.insert((connection, channel), follower);
    }

    /// It is answered.
    pub(crate) fn follow_answered(
        &mut self,
        connection: u64,
        (channel, cid): (usize, u64),
        answer: &Value,
        now: Millis,
    ) -> Result<(), Violation> {
        let followers = &mut self.positions.followers;
        // It may have been given up meanwhile.
        let Some(follower) = followers.get_mut(&(connection, channel)) else {
            return Ok(());
        };
        if follower.cid != cid {
            return Ok(());
        }
        let place = position(answer).ok_or_else(|| Violation(format!("{answer} is no answer")))?;
        let recovered = answer.get("recovered").and_then(Value::as_bool);
        let (since, asked, client) = (follower.since, follower.asked, follower.client);
        follower.place = Some(place);
        let early = std::mem::take(&mut follower.early);
        match (since, recovered) {
            (None, Some(true)) => {}
            (Some(since), Some(true)) if since == place => {}
            (Some(_), Some(false)) => self.may_miss(connection, channel, asked, now)?,
            _ => {
                return Err(Violation(format!(
                    "connection {connection} asked for c{channel} since {since:?} and got {answer}"
                )));
            }
        }
        self.positions.known.insert((client, channel), place);
        early
            .into_iter()
            .try_for_each(|news| self.follower_heard(connection, channel, news, now))
    }

    /// A follower hears something.
    pub(crate) fn follower_heard(
        &mut self,
        connection: u64,
        channel: usize,
        news: News,
        now: Millis,
    ) -> Result<(), Violation> {
        let followers = &mut self.positions.followers;
        let Some(follower) = followers.get_mut(&(connection, channel)) else {
            return Err(Violation(format!(
                "connection {connection} heard {news:?} of c{channel} without a subscription"
            )));
        };
        let Some(place) = follower.place else {
            follower.early.push(news);
            return Ok(());
        };
        let (client, whole_since) = (follower.client, follower.whole_since);
        let reached = match news {
            News::Publication { offset, id } => {
                let reached = Position { offset, ..place };
                if offset != place.offset + 1 || self.logs.at(channel, reached) != Some(id) {
                    return Err(Violation(format!(
                        "connection {connection} heard {id} of c{channel} at offset {offset} after \
                         {place:?}, where {:?} is",
                        self.logs.at(channel, reached)
                    )));
                }
                reached
            }
            News::Hole(reached) => {
                if reached.generation == place.generation && reached.offset < place.offset {
                    return Err(Violation(format!(
                        "connection {connection} is at {place:?} of c{channel} and is sent back to \
                         {reached:?}"
                    )));
                }
                self.may_miss(connection, channel, whole_since, now)?;
                reached
            }
        };
        let positions = &mut self.positions;
        if let Some(follower) = positions.followers.get_mut(&(connection, channel)) {
            follower.place = Some(reached);
            if matches!(news, News::Hole(_)) {
                follower.whole_since = now;
            }
        }
        positions.known.insert((client, channel), reached);
        Ok(())
    }

    /// A follower is told that something is missing.
    fn may_miss(
        &self,
        connection: u64,
        channel: usize,
        since: Millis,
        now: Millis,
    ) -> Result<(), Violation> {
        if self.may_have_holes() || now.since(since) >= READ_TIMEOUT {
            return Ok(());
        }
        Err(Violation(format!(
            "connection {connection} is told that something of c{channel} is missing, and nothing is"
        )))
    }

    /// What must hold of followers once everything has drained: each is where its
    /// channel's log ends.
    pub(crate) fn followers_at_rest(&self) -> Result<(), Violation> {
        for ((connection, channel), follower) in &self.positions.followers {
            let Some(place) = follower.place else {
                return Err(Violation(format!(
                    "connection {connection} waits for its subscription to c{channel}"
                )));
            };
            let Some(end) = self.logs.end(*channel) else {
                continue;
            };
            // Of a log that has begun and has no publication, nobody knows here.
            let is_begun = place.offset == 0 && place.generation != end.generation;
            if place != end && !(is_begun && self.may_have_holes()) {
                return Err(Violation(format!(
                    "connection {connection} is at {place:?} of c{channel}, whose log ends at {end:?}"
                )));
            }
        }
        Ok(())
    }

    /// A client's question for what a channel keeps reaches its worker.
    pub(crate) fn asks(&mut self, connection: u64, cid: u64, question: Question, now: Millis) {
        let asked = Asked {
            question,
            at: now,
            end: self.logs.end(question.channel),
        };
        self.positions.asked.insert((connection, cid), asked);
    }

    /// It is answered: with a part of the log that has no hole, is as it was
    /// published, and has all that is to be kept.
    pub(crate) fn read_answered(
        &mut self,
        connection: u64,
        cid: u64,
        answer: Result<&Value, &str>,
        now: Millis,
    ) -> Result<(), Violation> {
        let Some(asked) = self.positions.asked.remove(&(connection, cid)) else {
            return Err(Violation(format!("read {cid} was answered unasked")));
        };
        let fail = |what: &str| {
            Err(Violation(format!(
                "connection {connection} got {answer:?} for {asked:?}: {what}"
            )))
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err("HistoryUnavailableError") if now.since(asked.at) >= READ_TIMEOUT => return Ok(()),
            Err(_) => return fail("an error"),
        };
        let Ok(page) = serde_json::from_value::<Page>(answer.clone()) else {
            return fail("not to be understood");
        };
        match self.judge(&asked, &page) {
            None => Ok(()),
            Some(what) => fail(what),
        }
    }

    /// What is wrong with an answer, if anything is.
    fn judge(&self, Asked { question, end, .. }: &Asked, page: &Page) -> Option<&'static str> {
        let Some(generation) = page.generation.as_deref().and_then(generation) else {
            let nothing = page.publications.is_empty() && page.offset == 0;
            let may_be = end.is_none() || self.may_have_holes();
            return (!(nothing && may_be)).then_some("the channel is there");
        };
        let head = Position {
            generation,
            offset: page.offset,
        };
        let is_same = |position: Position| position.generation == generation;
        match end {
            Some(end) if is_same(*end) && self.is_durable() && head.offset < end.offset => {
                return Some("the end was later when it was asked");
            }
            Some(end) if !is_same(*end) && !self.may_have_holes() => {
                return Some("another generation, and nothing was lost");
            }
            Some(_) | None => {}
        }
        if page.publications.len() > question.limit as usize {
            return Some("more than was asked for");
        }
        self.judge_content(question, head, page)
            .or_else(|| self.judge_extent(question, head, page))
    }

    /// Offsets follow each other, and each publication is at its own.
    fn judge_content(
        &self,
        question: &Question,
        head: Position,
        page: &Page,
    ) -> Option<&'static str> {
        let offsets: Vec<u64> = page.publications.iter().map(|it| it.offset).collect();
        let follow = |pair: &[u64]| match question.newest_first {
            true => pair[1] + 1 == pair[0],
            false => pair[0] + 1 == pair[1],
        };
        if !offsets.windows(2).all(follow) {
            return Some("a hole, or another order");
        }
        let is_right = |entry: &Entry| {
            let id = entry.data.as_deref().map(str::as_bytes);
            let there = self.logs.at(
                question.channel,
                Position {
                    offset: entry.offset,
                    ..head
                },
            );
            there.is_some() && id.and_then(publication_id) == there
        };
        (!page.publications.iter().all(is_right)).then_some("another publication is there")
    }

    /// Nothing of what is to be kept is missing.
    fn judge_extent(
        &self,
        question: &Question,
        head: Position,
        page: &Page,
    ) -> Option<&'static str> {
        let kept = self.positions.history.unwrap_or_default().min(head.offset);
        let first_kept = head.offset - kept + 1;
        let after = match question.since {
            Some(since) if since.generation != head.generation => {
                let knows = page.complete || !page.publications.is_empty();
                return knows.then_some("a position of another generation means nothing here");
            }
            Some(since) => since.offset,
            None => 0,
        };
        let first = after + 1;
        if first >= first_kept && !page.complete {
            return Some("all of it is to be kept");
        }
        let ends = (page.publications.first(), page.publications.last());
        let (oldest, newest) = match ends {
            (Some(first), Some(last)) if question.newest_first => (last.offset, first.offset),
            (Some(first), Some(last)) => (first.offset, last.offset),
            _ => {
                let is_something = first <= head.offset;
                return is_something.then_some("nothing, and something is kept");
            }
        };
        let reaches_on = newest == head.offset;
        let reaches_back = match page.complete {
            true => oldest == first,
            false => oldest <= first_kept,
        };
        let has_its_part = match question.newest_first {
            true => reaches_on && (reaches_back || page.more),
            false => reaches_back && (reaches_on || page.more),
        };
        (!has_its_part || oldest < first).then_some("not what was asked for")
    }
}

/// The position that an answer or an event has.
pub(crate) fn position(data: &Value) -> Option<Position> {
    Some(Position {
        generation: generation(data.get("generation")?.as_str()?)?,
        offset: data.get("offset")?.as_u64()?,
    })
}

fn generation(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}
