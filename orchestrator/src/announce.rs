//! What people are told once the cluster is ready: where it listens and how to
//! connect.

use std::net::SocketAddr;

use tracing::info;

use crate::cluster::Settings;

pub(crate) fn announce(settings: &Settings) {
    let Settings {
        listen, path, size, ..
    } = settings;
    info!(
        %listen,
        url = format!("ws://{}:{}{path}", host(*listen), listen.port()),
        workers = size.workers,
        brokers = size.brokers,
        runtime_dir = %settings.runtime_dir.display(),
        "Cluster is ready."
    );
    info!(snippet = snippet(*listen, path), "How to connect.");
}

/// A line for Node.js that connects a client to the cluster.
fn snippet(listen: SocketAddr, path: &str) -> String {
    let (host, port) = (host(listen), listen.port());
    format!(
        "require('socketcluster-client').create({{ hostname: '{host}', port: {port}, path: '{path}' }})"
    )
}

/// Where a client on this host connects to.
fn host(listen: SocketAddr) -> String {
    match listen {
        _ if listen.ip().is_unspecified() => "localhost".into(),
        SocketAddr::V4(addr) => addr.ip().to_string(),
        SocketAddr::V6(addr) => format!("[{}]", addr.ip()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_that_listens_everywhere_is_reached_as_localhost() {
        let listen = SocketAddr::from(([0, 0, 0, 0], 8000));
        assert_eq!(
            snippet(listen, "/socketcluster/"),
            "require('socketcluster-client').create({ hostname: 'localhost', port: 8000, path: '/socketcluster/' })"
        );
        assert_eq!(host("[::]:1".parse().unwrap()), "localhost");
        assert_eq!(host("[::1]:1".parse().unwrap()), "[::1]");
        assert_eq!(host("127.0.0.1:1".parse().unwrap()), "127.0.0.1");
    }
}
