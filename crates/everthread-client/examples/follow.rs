//! Follows a session in ten lines: `cargo run -p everthread-client --example follow SESSION`.

#![expect(clippy::print_stdout, reason = "an example that shows what it does")]

use everthread_client::{Client, Error, From};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let session = std::env::args().nth(1).unwrap_or_else(|| "demo".to_owned()).parse()?;
    let client = Client::builder("ws://127.0.0.1:7400", "dev").connect();
    let mut follow = client.follow(session, From::Recent(20)).await?;
    while follow.next().await.is_some() {
        let last = follow.view().and_then(|view| view.messages().last());
        println!("{:?} {:?}", follow.cursor(), last.map(|message| &message.parts));
    }
    Ok(())
}
