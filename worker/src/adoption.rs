//! A worker's part in adoption: it keeps the listening socket for the next
//! orchestrator (delivery.md E3), and takes what other workers offer.

use std::{io, net::TcpListener, os::fd::OwnedFd, path::PathBuf};

use muster_daemon::{NodeArgs, adoption, runtime_dir};
use tokio::sync::mpsc;
use tracing::warn;

/// Removes the worker's socket when dropped.
#[derive(Debug)]
pub(crate) struct SocketFile(PathBuf);

/// Keeps `listener` for who asks on the worker's socket, and passes on ends of
/// sockets that other workers offer there, until the socket's file is dropped. A worker without it serves clients all the same.
pub(crate) fn keep(
    args: &NodeArgs,
    listener: &TcpListener,
    offers: mpsc::Sender<OwnedFd>,
) -> Option<SocketFile> {
    let path = runtime_dir::worker_socket(&args.runtime_dir, args.slot, args.incarnation);
    let bind = || -> io::Result<_> {
        let listener = listener.try_clone()?;
        Ok((adoption::bind(&path)?, listener))
    };
    match bind() {
        Ok((socket, listener)) => {
            // Ends with the runtime, and never before.
            tokio::spawn(adoption::serve(socket, listener.into(), offers));
            Some(SocketFile(path))
        }
        Err(error) => {
            warn!(
                path = %path.display(),
                %error,
                "Cannot keep the listening socket for an orchestrator that is started anew."
            );
            None
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Whoever cleaned up before us did what we wanted.
        let _ = std::fs::remove_file(&self.0);
    }
}
