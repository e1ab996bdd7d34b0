//! The way through a real S3 protocol: a server of the test's own, where there is one to start.

use crate::world::{Engine as _, OnEmbedded, World, session, view};
use everthread_archive::{Bucket, Error};
use everthread_store::{Archived, Archiver as _};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A stand-in for S3 that many machines have: `pip install 'moto[server]'`.
const SERVER: &str = "moto_server";

struct Server(Child, u16);

impl Server {
    /// `None` where it is not installed.
    async fn start() -> Option<Server> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new(SERVER);
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
        let server = Server(child, port);
        let began = Instant::now();
        while server.request("PUT", "/everthread-test").await.is_none_or(|status| status != 200) {
            assert!(began.elapsed() < Duration::from_secs(60), "it does not start");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Some(server)
    }

    async fn request(&self, method: &str, path: &str) -> Option<u16> {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut socket = tokio::net::TcpStream::connect(("127.0.0.1", self.1)).await.ok()?;
        let date = "20260101T000000Z";
        let credential = "Credential=test/20260101/us-east-1/s3/aws4_request";
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nX-Amz-Date: {date}\r\nAuthorization: AWS4-HMAC-SHA256 \
             {credential}, SignedHeaders=host, Signature=0\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            self.1
        );
        socket.write_all(head.as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).await.ok()?;
        String::from_utf8_lossy(&answer).split(' ').nth(1)?.parse().ok()
    }

    fn bucket(&self, name: &str) -> Bucket {
        let options = [
            ("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", self.1)),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
            ("AWS_ACCESS_KEY_ID", "test".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "test".to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
        ];
        let options = options.map(|(name, value)| (name.to_owned(), value));
        Bucket::open(&format!("s3://{name}/some/prefix"), options).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_go_to_s3_and_come_back() {
    let Some(server) = Server::start().await else {
        // Past the capture of a test that passes: it must be seen.
        let told = format!("SKIPPED sessions_go_to_s3_and_come_back: {SERVER} is not installed\n");
        std::io::Write::write_all(&mut std::io::stderr(), told.as_bytes()).unwrap();
        return;
    };
    // As the binary does.
    drop(rustls::crypto::ring::default_provider().install_default());
    let bucket = server.bucket("everthread-test");
    bucket.check().await.unwrap();
    bucket.begin().await.unwrap();
    let world = World {
        engine: OnEmbedded::start().await,
        objects: std::sync::Arc::new(object_store::memory::InMemory::new()),
        bucket,
    };
    let node = world.node().await;
    let key = session(&*node, 100).await;
    let seen = view(&*node, &key).await;
    for n in 0..2 {
        assert_eq!(node.archive(&key).await, Ok(Archived::Done));
        assert_eq!(world.bucket.list(&key).await.unwrap().len(), 1 + n);
        assert_eq!(view(&*node, &key).await, seen);
    }

    // One that is larger than a part.
    let large: Vec<u8> = (0..=250).cycle().take(11 << 20).collect();
    let mut upload = world.bucket.upload(&key, "large");
    for piece in large.chunks(1 << 20) {
        upload.push(piece).await.unwrap();
    }
    upload.finish().await.unwrap();
    let pieces = world.bucket.read(&key, "large").await.unwrap();
    let read: Vec<bytes::Bytes> = futures_util::TryStreamExt::try_collect(pieces).await.unwrap();
    assert_eq!(read.concat(), large);

    assert!(matches!(server.bucket("nobody-has-made-it").check().await, Err(Error::Bucket(_))));
}
