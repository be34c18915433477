//! Where a broker accepts links: a Unix socket in the runtime directory, or TCP.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use muster_daemon::NodeArgs;
use tokio::net::{TcpListener, UnixListener};
use tracing::warn;

use crate::BrokerError;

/// Bytes of a Unix socket's path; one more is the terminating zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;
const SOCKET_MODE: u32 = 0o600;

/// Where to accept links.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Listen {
    /// On `broker-SLOT-INCARNATION.sock` in the runtime directory, which only
    /// this user can open.
    #[default]
    Socket,
    /// On TCP, for workers in other containers. There is no authentication: the
    /// network must be private.
    Tcp(SocketAddr),
}

/// A bound listener.
#[derive(Debug)]
pub(crate) enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// A listener, the address that workers reach it at, and its file.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) listener: Listener,
    pub(crate) address: String,
    /// Removes the socket when dropped.
    pub(crate) file: Option<SocketFile>,
}

#[derive(Debug)]
pub(crate) struct SocketFile(PathBuf);

/// Binds; a socket of the same name that was left behind is replaced.
pub(crate) async fn bind(args: &NodeArgs, listen: Listen) -> Result<Bound, BrokerError> {
    match listen {
        Listen::Socket => {
            let name = format!("broker-{}-{}.sock", args.slot, args.incarnation);
            bind_socket(&args.runtime_dir, &name)
        }
        Listen::Tcp(addr) => {
            let fail = |source| BrokerError::BindTcp { addr, source };
            let listener = TcpListener::bind(addr).await.map_err(fail)?;
            let bound = listener.local_addr().map_err(fail)?;
            Ok(Bound {
                listener: Listener::Tcp(listener),
                address: format!("http://{bound}"),
                file: None,
            })
        }
    }
}

fn bind_socket(runtime_dir: &Path, name: &str) -> Result<Bound, BrokerError> {
    let fail = |path: &Path, source| BrokerError::BindSocket {
        path: path.into(),
        source,
    };
    let path = std::path::absolute(runtime_dir)
        .map_err(|source| fail(runtime_dir, source))?
        .join(name);
    let len = path.as_os_str().len();
    if len > SOCKET_PATH_BYTES_MAX {
        let max = SOCKET_PATH_BYTES_MAX;
        return Err(BrokerError::SocketPathTooLong { path, len, max });
    }
    remove_leftover(&path).map_err(|source| fail(&path, source))?;
    let listener = UnixListener::bind(&path).map_err(|source| fail(&path, source))?;
    let file = SocketFile(path.clone());
    fs::set_permissions(&path, fs::Permissions::from_mode(SOCKET_MODE))
        .map_err(|source| fail(&path, source))?;
    Ok(Bound {
        listener: Listener::Unix(listener),
        address: format!("unix:{}", path.display()),
        file: Some(file),
    })
}

fn remove_leftover(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => fs::remove_file(path),
        Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        match fs::remove_file(&self.0) {
            Ok(()) => {}
            // Whoever cleaned up before us did what we wanted.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                warn!(path = %self.0.display(), %error, "Could not remove the socket.");
            }
        }
    }
}
