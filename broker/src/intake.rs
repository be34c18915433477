//! What a worker sends on a link, frame by frame (hop 4, relay).

use std::{collections::HashMap, sync::Arc};

use muster_proto::{
    PRODUCER_BYTES_MAX, ShardId,
    link::{Publish, RefusalReason, WorkerBatch, worker_frame::Frame},
    shard_of,
};
use muster_wire::{CHANNEL_NAME_BYTES_MAX, ChannelNameError};
use rand::Rng;

use crate::{error::LinkError, link::Link, shard::Publishing, table::Table, turn::Turn};

/// The receiving side of one link.
#[derive(Debug)]
pub(crate) struct Intake {
    link: Arc<Link>,
    data_bytes_max: usize,
    last_seq: u64,
    /// By shard: the attempt of which something, a subscription or a
    /// publication, was refused for its epoch.
    refused: HashMap<ShardId, u32>,
}

impl Intake {
    pub(crate) fn new(link: Arc<Link>, data_bytes_max: usize) -> Self {
        Self {
            link,
            data_bytes_max,
            last_seq: 0,
            refused: HashMap::new(),
        }
    }

    /// Does what a batch asks for, in order. An error ends the link; what came
    /// before the frame at fault is done. What was staged is to be committed at
    /// the end of the turn, whatever the outcome.
    pub(crate) fn handle(
        &mut self,
        turn: &mut Turn,
        rng: &mut impl Rng,
        table: &Table,
        batch: WorkerBatch,
    ) -> Result<(), LinkError> {
        let frames = batch.frames.into_iter();
        frames
            .map(|frame| frame.frame)
            .try_for_each(|frame| self.frame(turn, rng, table, frame))
    }

    fn frame(
        &mut self,
        turn: &mut Turn,
        rng: &mut impl Rng,
        table: &Table,
        frame: Option<Frame>,
    ) -> Result<(), LinkError> {
        match frame {
            Some(Frame::Publish(publish)) => self.publish(turn, rng, table, &publish),
            Some(Frame::Subscribe(subscribe)) => {
                let field = "subscribe.channel";
                check_channel(&subscribe.channel)
                    .map_err(|error| LinkError::Channel { field, error })?;
                if !table.subscribe(turn, rng, &self.link, &subscribe) {
                    self.refused
                        .insert(shard_of(&subscribe.channel), subscribe.attempt);
                }
                Ok(())
            }
            Some(Frame::Unsubscribe(unsubscribe)) => {
                let field = "unsubscribe.channel";
                check_channel(&unsubscribe.channel)
                    .map_err(|error| LinkError::Channel { field, error })?;
                table.unsubscribe(turn.now, &self.link, &unsubscribe.channel);
                Ok(())
            }
            Some(Frame::Hello(_)) => Err(LinkError::HelloRepeated),
            None => Err(LinkError::FrameEmpty),
        }
    }

    fn publish(
        &mut self,
        turn: &mut Turn,
        rng: &mut impl Rng,
        table: &Table,
        publish: &Publish,
    ) -> Result<(), LinkError> {
        let expected = self.last_seq + 1;
        if publish.seq != expected {
            let found = publish.seq;
            return Err(LinkError::SeqNotConsecutive { expected, found });
        }
        self.last_seq = publish.seq;
        let outcome = match self.check(publish) {
            Ok(()) => self.publish_well_formed(turn, rng, table, publish),
            Err(reason) => Publishing::Done(Err(reason)),
        };
        if let Publishing::Done(outcome) = outcome {
            self.link.settle(turn, publish.seq, 1, outcome);
        }
        Ok(())
    }

    /// Refuses, after a publication was refused for its epoch, whatever the
    /// worker sent for that shard before it knew (delivery.md A5).
    fn publish_well_formed(
        &mut self,
        turn: &mut Turn,
        rng: &mut impl Rng,
        table: &Table,
        publish: &Publish,
    ) -> Publishing {
        if !self.refused.is_empty() {
            let shard = shard_of(&publish.channel);
            if self.refused.get(&shard) == Some(&publish.attempt) {
                return Publishing::Done(Err(RefusalReason::WrongEpoch));
            }
            self.refused.remove(&shard);
        }
        let outcome = table.publish(turn, rng, &self.link, publish);
        if outcome == Publishing::Done(Err(RefusalReason::WrongEpoch)) {
            self.refused
                .insert(shard_of(&publish.channel), publish.attempt);
        }
        outcome
    }

    fn check(&self, publish: &Publish) -> Result<(), RefusalReason> {
        let data_bytes = publish.data.as_ref().map_or(0, |data| data.len());
        let well_formed = check_channel(&publish.channel).is_ok()
            && (1..=PRODUCER_BYTES_MAX).contains(&publish.producer.len())
            && data_bytes <= self.data_bytes_max;
        well_formed.then_some(()).ok_or(RefusalReason::Malformed)
    }
}

/// Whether these bytes are a channel's name; without building one, because a
/// known channel has its name already.
pub(crate) fn check_channel(name: &[u8]) -> Result<(), ChannelNameError> {
    if name.len() > CHANNEL_NAME_BYTES_MAX {
        return Err(ChannelNameError::TooLong {
            len: name.len(),
            max: CHANNEL_NAME_BYTES_MAX,
        });
    }
    str::from_utf8(name).map_err(|_| ChannelNameError::NotUtf8)?;
    Ok(())
}
