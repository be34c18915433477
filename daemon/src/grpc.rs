//! gRPC between the processes of one host, over Unix sockets that wake up nobody
//! for nothing.

use std::{
    future::Future,
    io,
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll},
};

use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::{Stream, StreamExt as _, wrappers::UnixListenerStream};
use tonic::{
    codegen::{Service, http::Uri},
    transport::{Channel, Endpoint, Error, server::Connected},
};

use crate::quiet::QuietStream;

/// What an address begins with that is the path of a Unix socket.
const UNIX_SCHEME: &str = "unix:";
/// The host in requests, which nobody looks at on a Unix socket.
const UNIX_ORIGIN: &str = "http://muster";

/// Connects to `address`, `unix:PATH` or an HTTP URL, as `tune` says.
///
/// # Errors
///
/// When it is no address, or nobody is there.
pub async fn connect(
    address: &str,
    tune: impl FnOnce(Endpoint) -> Endpoint,
) -> Result<Channel, Error> {
    match address.strip_prefix(UNIX_SCHEME) {
        Some(path) => {
            let endpoint = tune(Endpoint::from_static(UNIX_ORIGIN));
            let connector = Connector(Path::new(path).into());
            endpoint.connect_with_connector(connector).await
        }
        None => {
            tune(Endpoint::from_shared(address.to_owned())?)
                .connect()
                .await
        }
    }
}

/// What comes in on a Unix socket.
pub fn incoming(listener: UnixListener) -> impl Stream<Item = io::Result<QuietStream>> {
    UnixListenerStream::new(listener).map(|accepted| QuietStream::new(accepted?))
}

/// Connects to one path, whatever it is asked for.
struct Connector(PathBuf);

impl Service<Uri> for Connector {
    type Response = TokioIo<QuietStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let path = self.0.clone();
        Box::pin(async move {
            let socket = UnixStream::connect(path).await?;
            Ok(TokioIo::new(QuietStream::new(socket)?))
        })
    }
}

impl Connected for QuietStream {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}
