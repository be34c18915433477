//! What operators are answered.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use muster_daemon::{config::HOLD_MAX, exit::chain, telemetry};
use muster_proto::control::{
    self as pb, operator_server::Operator, publish_result::Outcome, query::Request as Query,
};
use muster_wire::ChannelName;
use tonic::{Response, Status, codegen::async_trait};

use super::{
    AbortRefused, Ending, Goal, RebalanceRefused, Request, ScaleRefused, UpdateRefused, UpdateWish,
    Whom, server::Control,
};
use crate::{
    calls::{Gathered, NotAsked},
    cli::{BROKERS_MAX, WORKERS_MAX},
    gather::Gather,
    node::NodeId,
    reload::Reload,
};

/// A day.
const DRAIN_MS_MAX: u64 = 24 * 3600 * 1000;
/// Entries of a list when an operator does not say how many.
const LIMIT_DEFAULT: u32 = 100;
/// Most entries of a list: with the longest names far below what one message
/// may have.
pub(crate) const LIMIT_MAX: u32 = 1000;

impl Control {
    async fn query(&self, request: Query, whom: Whom) -> Result<Gathered, Status> {
        let asked = self.ask(|answer| Request::Query {
            request,
            whom,
            answer,
        });
        asked.await?.map_err(|not_asked| match not_asked {
            NotAsked::NotReady => {
                Status::unavailable("no worker is ready: try again, or see `status`")
            }
            NotAsked::NoWorker { slot } => Status::not_found(format!(
                "there is no worker in slot {slot}: `status` lists those there are"
            )),
            NotAsked::Busy => Status::resource_exhausted("too many commands at once: try again"),
        })
    }
}

#[async_trait]
impl Operator for Control {
    async fn status(
        &self,
        _: tonic::Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusResponse>, Status> {
        let status = self.ask(|answer| Request::Status { answer }).await?;
        Ok(Response::new(status))
    }

    async fn down(
        &self,
        request: tonic::Request<pb::DownRequest>,
    ) -> Result<Response<pb::DownResponse>, Status> {
        let how = match request.into_inner().drain_within_ms {
            None => Ending::GoAway,
            Some(0) => Ending::Drain(None),
            Some(within) if within <= DRAIN_MS_MAX => {
                Ending::Drain(Some(Duration::from_millis(within)))
            }
            Some(within) => {
                return Err(Status::invalid_argument(format!(
                    "a drain takes at most {DRAIN_MS_MAX} ms, not {within}"
                )));
            }
        };
        self.ask(|answer| Request::Down { how, answer }).await?;
        Ok(Response::new(pb::DownResponse {}))
    }

    async fn client(
        &self,
        request: tonic::Request<pb::ClientCommand>,
    ) -> Result<Response<pb::ClientResult>, Status> {
        let command = request.into_inner();
        if command.action.is_none() {
            return Err(Status::invalid_argument(
                "no action that this release knows",
            ));
        }
        let gathered = self.query(Query::Client(command), Whom::Workers).await?;
        let Gather::Client(result) = gathered.answers else {
            return Err(mixed_up());
        };
        match (result, gathered.silent.len()) {
            (Some(result), _) => Ok(Response::new(result)),
            (None, 0) => Ok(Response::new(pb::ClientResult::default())),
            (None, workers) => Err(Status::deadline_exceeded(format!(
                "{workers} workers did not answer, the others do not know the connection: try again"
            ))),
        }
    }

    async fn publish(
        &self,
        request: tonic::Request<pb::PublishRequest>,
    ) -> Result<Response<pb::PublishResponse>, Status> {
        let query = Query::Publish(request.into_inner());
        let gathered = self.query(query, Whom::AnyWorker).await?;
        let Gather::Publish(result) = gathered.answers else {
            return Err(mixed_up());
        };
        let Some(result) = result else {
            return Err(Status::deadline_exceeded(
                "the worker that was to publish it did not answer: the publication may or may not be \
                 delivered",
            ));
        };
        let message = result.message.clone();
        match result.outcome() {
            Outcome::Published => Ok(Response::new(pb::PublishResponse {})),
            Outcome::Refused => Err(Status::resource_exhausted(message)),
            Outcome::Invalid => Err(Status::invalid_argument(message)),
            Outcome::Unknown | Outcome::Unspecified => Err(Status::deadline_exceeded(message)),
        }
    }

    async fn history(
        &self,
        request: tonic::Request<pb::HistoryRequest>,
    ) -> Result<Response<pb::HistoryResponse>, Status> {
        let mut request = request.into_inner();
        request.limit = limit(request.limit)?;
        ChannelName::try_from(&*request.channel)
            .map_err(|error| Status::invalid_argument(format!("the channel's name: {error}")))?;
        let gathered = self.query(Query::History(request), Whom::AnyWorker).await?;
        let Gather::History(result) = gathered.answers else {
            return Err(mixed_up());
        };
        match result {
            Some(pb::HistoryResult {
                history: Some(history),
                ..
            }) => Ok(Response::new(history)),
            Some(pb::HistoryResult { error, .. }) => Err(Status::unavailable(error)),
            None => Err(Status::unavailable(
                "the worker that was to read it did not answer: try again",
            )),
        }
    }

    async fn channels(
        &self,
        request: tonic::Request<pb::ChannelsRequest>,
    ) -> Result<Response<pb::ChannelsResponse>, Status> {
        let mut request = request.into_inner();
        request.limit = limit(request.limit)?;
        let gathered = self.query(Query::Channels(request), Whom::Workers).await?;
        let Gather::Channels(channels) = gathered.answers else {
            return Err(mixed_up());
        };
        let (channels, cut) = channels.into_list();
        Ok(Response::new(pb::ChannelsResponse {
            channels,
            cut,
            silent: names(&gathered.silent),
        }))
    }

    async fn connections(
        &self,
        request: tonic::Request<pb::ConnectionsRequest>,
    ) -> Result<Response<pb::ConnectionsResponse>, Status> {
        let mut request = request.into_inner();
        request.limit = limit(request.limit)?;
        let whom = match request.worker {
            0 => Whom::Workers,
            slot => Whom::Worker(slot),
        };
        let gathered = self.query(Query::Connections(request), whom).await?;
        let Gather::Connections(connections) = gathered.answers else {
            return Err(mixed_up());
        };
        let (connections, cut, workers) = connections.into_list();
        Ok(Response::new(pb::ConnectionsResponse {
            connections,
            cut,
            silent: names(&gathered.silent),
            workers,
        }))
    }

    async fn log_filter(
        &self,
        request: tonic::Request<pb::LogFilterRequest>,
    ) -> Result<Response<pb::LogFilterResponse>, Status> {
        let mut silent = Vec::new();
        if let Some(filter) = &request.get_ref().filter {
            // What does not make sense here makes none for any node.
            telemetry::set_filter(filter)
                .map_err(|error| Status::invalid_argument(chain(&error)))?;
            let query = Query::LogFilter(request.into_inner());
            let gathered = self.query(query, Whom::Everyone).await?;
            let Gather::Refused(refused) = gathered.answers else {
                return Err(mixed_up());
            };
            silent = names(&(&gathered.silent | &refused));
        }
        Ok(Response::new(pb::LogFilterResponse {
            filter: telemetry::filter(),
            silent,
        }))
    }

    async fn scale(
        &self,
        request: tonic::Request<pb::ScaleRequest>,
    ) -> Result<Response<pb::ScaleResponse>, Status> {
        let pb::ScaleRequest { workers, brokers } = request.into_inner();
        if workers.is_none() && brokers.is_none() {
            return Err(Status::invalid_argument(
                "neither workers nor brokers are named",
            ));
        }
        within("workers", WORKERS_MAX, workers)?;
        within("brokers", BROKERS_MAX, brokers)?;
        let goal = Goal { workers, brokers };
        let scaled = self.ask(|answer| Request::Scale { goal, answer }).await?;
        let refused = |refused: ScaleRefused| Status::failed_precondition(refused.to_string());
        scaled.map(Response::new).map_err(refused)
    }

    async fn update(
        &self,
        request: tonic::Request<pb::UpdateRequest>,
    ) -> Result<Response<pb::UpdateResponse>, Status> {
        let pb::UpdateRequest {
            program,
            canary,
            hold_ms,
            parallel,
        } = request.into_inner();
        let program = PathBuf::from(program);
        let program = Some(program).filter(|program| !program.as_os_str().is_empty());
        if program
            .as_ref()
            .is_some_and(|program| program.is_relative())
        {
            return Err(Status::invalid_argument(
                "the program's path is not absolute",
            ));
        }
        within("workers to replace at once", WORKERS_MAX, parallel)?;
        let hold = hold_ms.map(Duration::from_millis);
        if hold.is_some_and(|hold| hold > HOLD_MAX) {
            return Err(Status::invalid_argument(format!(
                "the first workers are watched for at most {HOLD_MAX:?}"
            )));
        }
        let wish = UpdateWish {
            program,
            canary,
            hold,
            parallel,
        };
        let begun = self.ask(|answer| Request::Update { wish, answer }).await?;
        let refused = |refused: UpdateRefused| Status::failed_precondition(refused.to_string());
        begun
            .map(|()| Response::new(pb::UpdateResponse {}))
            .map_err(refused)
    }

    async fn abort_update(
        &self,
        _: tonic::Request<pb::AbortUpdateRequest>,
    ) -> Result<Response<pb::AbortUpdateResponse>, Status> {
        let begun = self.ask(|answer| Request::AbortUpdate { answer }).await?;
        let refused = |refused: AbortRefused| Status::failed_precondition(refused.to_string());
        begun
            .map(|()| Response::new(pb::AbortUpdateResponse {}))
            .map_err(refused)
    }

    async fn rebalance(
        &self,
        _: tonic::Request<pb::RebalanceRequest>,
    ) -> Result<Response<pb::RebalanceResponse>, Status> {
        let rebalanced = self.ask(|answer| Request::Rebalance { answer }).await?;
        let refused = |refused: RebalanceRefused| Status::failed_precondition(refused.to_string());
        rebalanced.map(Response::new).map_err(refused)
    }

    async fn reload(
        &self,
        _: tonic::Request<pb::ReloadRequest>,
    ) -> Result<Response<pb::ReloadResponse>, Status> {
        let reloaded = self.ask(|answer| Request::Reload { answer }).await?;
        let Reload {
            config,
            changed,
            needs_update,
            fixed,
        } = reloaded.map_err(|error| Status::failed_precondition(chain(&error)))?;
        let config = config.to_toml();
        let query = Query::Reload(pb::ReloadConfig { config });
        let gathered = self.query(query, Whom::Workers).await?;
        let Gather::Refused(refused) = gathered.answers else {
            return Err(mixed_up());
        };
        Ok(Response::new(pb::ReloadResponse {
            changed,
            needs_update,
            fixed,
            silent: names(&(&gathered.silent | &refused)),
        }))
    }

    async fn update_status(
        &self,
        _: tonic::Request<pb::UpdateStatusRequest>,
    ) -> Result<Response<pb::UpdateStatusResponse>, Status> {
        let status = self.ask(|answer| Request::UpdateStatus { answer }).await?;
        Ok(Response::new(status))
    }
}

fn within(what: &str, most: u32, count: Option<u32>) -> Result<(), Status> {
    match count {
        Some(count) if !(1..=most).contains(&count) => Err(Status::invalid_argument(format!(
            "a cluster has 1 to {most} {what}, not {count}"
        ))),
        Some(_) | None => Ok(()),
    }
}

fn limit(asked: u32) -> Result<u32, Status> {
    match asked {
        0 => Ok(LIMIT_DEFAULT),
        1..=LIMIT_MAX => Ok(asked),
        _ => Err(Status::invalid_argument(format!(
            "the limit is 1 to {LIMIT_MAX}, not {asked}"
        ))),
    }
}

fn names(nodes: &BTreeSet<NodeId>) -> Vec<String> {
    nodes.iter().map(ToString::to_string).collect()
}

/// Cannot happen: what is gathered is what was asked for.
fn mixed_up() -> Status {
    Status::internal("the answers belong to another query: report this")
}
