//! The verbs that ask a running cluster.

use std::{
    io::{self, Read as _},
    path::PathBuf,
};

use bytes::Bytes;
use muster_proto::{
    CONTROL_MESSAGE_BYTES_MAX,
    control::{self as pb, client_command::Action},
};
use serde_json::value::RawValue;

use crate::{
    Fatal, answers,
    cli::{STANDARD_INPUT, TokenVerb, Verb},
    control::{Operator, OperatorError},
    print, scale, table, update,
};

/// Most bytes read from standard input: no cluster takes a longer publication.
const DATA_BYTES_MAX: usize = CONTROL_MESSAGE_BYTES_MAX - (1 << 20);

/// Why what stands in standard input is not published.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DataError {
    #[error("cannot read the data from standard input")]
    Read(#[source] io::Error),
    #[error("standard input has more than {DATA_BYTES_MAX} bytes: nothing was published")]
    Long,
    #[error("standard input is no JSON: nothing was published")]
    Json(#[source] serde_json::Error),
}

/// Asks a running cluster and prints its answer.
pub(crate) async fn operate(mut verb: Verb, runtime_dir: Option<PathBuf>) -> Result<(), Fatal> {
    let json = verb.json();
    if let Verb::Scale(args) = verb {
        return print(&scale::scale(&args, runtime_dir).await?);
    }
    if let Verb::Update(args) = verb {
        return print(&update::update(&args, runtime_dir).await?);
    }
    if let Verb::Publish { data, .. } = &mut verb
        && data == STANDARD_INPUT
    {
        *data = read_json(io::stdin().lock())?;
    }
    let (mut operator, dir) = Operator::connect(runtime_dir).await?;
    let text = match verb {
        Verb::Status { .. } => {
            let status = operator.status().await?;
            let dir = dir.path().display().to_string();
            let show = if json { table::json } else { table::status };
            show(&status, &dir)
        }
        Verb::Down { drain, within, .. } => {
            let within = within.unwrap_or_default();
            let within = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
            operator.down(drain.then_some(within)).await?;
            drop(operator);
            dir.wait_until_free().map_err(OperatorError::from)?;
            answers::ended(&dir.path().display().to_string(), json)
        }
        Verb::Publish { channel, data, .. } => {
            operator.publish(channel.clone(), Bytes::from(data)).await?;
            answers::published(&channel, json)
        }
        Verb::Channels { which, .. } => {
            answers::channels(&operator.channels(which.request()).await?, json)
        }
        Verb::History { channel, which, .. } => {
            let history = operator.history(which.request(&channel)).await?;
            answers::history(&channel, which.newest, history, json)
        }
        Verb::Connections { which, .. } => {
            answers::connections(&operator.connections(which.request()).await?, json)
        }
        Verb::Rebalance { .. } => answers::rebalanced(&operator.rebalance().await?, json),
        Verb::Reload { .. } => answers::reloaded(&operator.reload().await?, json),
        Verb::LogFilter { filter, .. } => {
            answers::log_filter(&operator.log_filter(filter).await?, json)
        }
        verb @ (Verb::Kick { .. } | Verb::Disconnect { .. } | Verb::Token(_)) => {
            let (connection, action) = action(verb);
            operator.act(connection.clone(), action.clone()).await?;
            answers::done(&connection, &action, json)
        }
        Verb::Up(_)
        | Verb::Scale(_)
        | Verb::Update(_)
        | Verb::CheckConfig { .. }
        | Verb::PrintConfig { .. }
        | Verb::Completions { .. }
        | Verb::Bench(_)
        | Verb::Journal(_)
        | Verb::TakeoverCheck
        | Verb::Probe
        | Verb::Worker(_)
        | Verb::Broker(_) => unreachable!("these verbs ask no cluster"),
    };
    print(&text)
}

/// What is done to which connection.
fn action(verb: Verb) -> (String, Action) {
    match verb {
        Verb::Kick {
            connection,
            channel,
            message,
            ..
        } => (connection, Action::Kick(pb::Kick { channel, message })),
        Verb::Disconnect {
            connection,
            code,
            reason,
            ..
        } => {
            let code = u32::from(code);
            let disconnect = pb::Disconnect { code, reason };
            (connection, Action::Disconnect(disconnect))
        }
        Verb::Token(TokenVerb::Set {
            connection, claims, ..
        }) => (connection, Action::SetToken(pb::SetToken { claims })),
        Verb::Token(TokenVerb::Remove { connection, .. }) => {
            (connection, Action::RemoveToken(pb::RemoveToken {}))
        }
        Verb::Up(_)
        | Verb::Scale(_)
        | Verb::Update(_)
        | Verb::Rebalance { .. }
        | Verb::Reload { .. }
        | Verb::Status { .. }
        | Verb::Down { .. }
        | Verb::CheckConfig { .. }
        | Verb::PrintConfig { .. }
        | Verb::Completions { .. }
        | Verb::Bench(_)
        | Verb::Journal(_)
        | Verb::Publish { .. }
        | Verb::Channels { .. }
        | Verb::History { .. }
        | Verb::Connections { .. }
        | Verb::LogFilter { .. }
        | Verb::TakeoverCheck
        | Verb::Probe
        | Verb::Worker(_)
        | Verb::Broker(_) => unreachable!("these verbs act on no connection"),
    }
}

fn read_json(input: impl io::Read) -> Result<String, DataError> {
    let mut bytes = Vec::new();
    let most = u64::try_from(DATA_BYTES_MAX).unwrap_or(u64::MAX);
    input
        .take(most + 1)
        .read_to_end(&mut bytes)
        .map_err(DataError::Read)?;
    if bytes.len() > DATA_BYTES_MAX {
        return Err(DataError::Long);
    }
    let json = serde_json::from_slice::<&RawValue>(&bytes).map_err(DataError::Json)?;
    Ok(json.get().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_input_is_one_json_value_that_passes_as_it_is() {
        assert_eq!(read_json(&b" {\"a\": 1.0}\n"[..]).unwrap(), "{\"a\": 1.0}");
        for wrong in [&b""[..], b"{", b"1 2", b"\"\xff\"", b"hello"] {
            assert!(matches!(read_json(wrong), Err(DataError::Json(_))));
        }
        let endless = io::repeat(b' ');
        assert!(matches!(read_json(endless), Err(DataError::Long)));
    }
}
