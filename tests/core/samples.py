"""One of each message, with every field filled: what the golden files hold."""

from __future__ import annotations

from mingled.core import config, local, messages
from mingled.core.software import Software
from mingled.core.words import Form, JobId, Label, NodeId, Nonce, ParticipantId, Standing

JOB = JobId("bert")
LABEL = Label("abcdefghijklmnopqrstuvwxyz")
NODE = NodeId("0" * 31 + "1")
CLAIM = Nonce("0" * 31 + "2")
PROOF = Nonce("0" * 31 + "3")
WHO = ParticipantId("0" * 31 + "4")

CARD = messages.NodeCard(
    node=NODE, host="gpu1", port=29400, ring_port=41873, addresses=("10.0.0.1", "fd00::1")
)
ADVERT = messages.Advert(
    version=1, key_id="none", label=LABEL, claim=CLAIM, port=29400, addresses=("10.0.0.1",)
)
SOFTWARE = Software(
    python="3.13.1",
    torch="2.13.0+cu128",
    cuda="12.8",
    nccl="2.27.3",
    driver="570.86.15",
    git="0123456789abcdef0123456789abcdef01234567",
    dirty=False,
    cmd="2c26b46b68ff",
    why=(("script", "CMD names none"),),
)
ENTRY = messages.Entry(
    participant=WHO,
    form=Form.LAUNCHER,
    size_min=2,
    size_max=4,
    rank=1,
    nproc=8,
    user="ann",
    pid=4711,
    any_user=True,
    wait=False,
    before=3,
    software=SOFTWARE,
    require_same=("torch", "git"),
)
RUNNING = messages.Running(round=1, since_s=12.5, hosts=("gpu1", "gpu2"), size=2)
SEEN = (
    messages.Seen(host="gpu1", rank=0, user="ann"),
    messages.Seen(host="gpu2", rank=None, user="ann", address="10.0.0.2"),
)
MEMBER = config.Member(
    rank=0,
    node_rank=0,
    local_index=0,
    nproc=8,
    global_rank=0,
    host="gpu1",
    address="10.0.0.1",
    user="ann",
    node=NODE,
    participant=WHO,
)
CONFIG = config.Config(
    job=JOB,
    form=Form.LAUNCHER,
    round=1,
    claim=CLAIM,
    rank=0,
    master_addr="10.0.0.1",
    master_port=29512,
    interface="eth0",
    address="10.0.0.1",
    nnodes=1,
    node_rank=0,
    nproc_per_node=8,
    global_rank=0,
    world_size=8,
    local_rank=0,
    local_world_size=8,
    members=(MEMBER,),
    leader_host="gpu1",
    leader_link=("10.0.0.1", 29400),
)

CANCELLED = (
    messages.NodeCancelled(
        host="gpu1", address="10.0.0.1", node=NODE, ended=2, unheard=(4711,), kept=1
    ),
    messages.NodeCancelled(host="gpu3", address="10.0.0.3", flaw="no answer within 6 s"),
)

PEER: tuple[messages.Message, ...] = (
    messages.Join(
        label=LABEL,
        claim=CLAIM,
        job=JOB,
        node=CARD,
        entries=(ENTRY,),
        source="172.17.0.2",
        prepared=PROOF,
    ),
    messages.Welcome(
        claim=CLAIM,
        node=CARD,
        seen_address="10.0.0.2",
        met_address="10.0.0.1",
        standing=Standing.INCUMBENT,
    ),
    messages.Refuse(claim=CLAIM, code="refused", sentence="job bert: no", participants=(WHO,)),
    messages.Progress(
        claim=CLAIM,
        here=2,
        size_min=2,
        size_max=4,
        present=SEEN,
        missing=(2, 3),
        running=RUNNING,
        note="gpu3: no answer",
    ),
    messages.Prepare(
        claim=CLAIM,
        round=1,
        proof=PROOF,
        master_addr="10.0.0.1",
        master_port=29512,
        members=(MEMBER,),
        ring_ports=(41873,),
        store=True,
        warning="no address is reached by everybody",
        differences=("gpu3 runs torch 2.11.0, the others 2.13.0",),
    ),
    messages.Ack(claim=CLAIM, round=1, proof=PROOF),
    messages.Nack(
        claim=CLAIM, round=1, proof=PROOF, reason="TCP 29512 on gpu1: no answer", master=True
    ),
    messages.Reach(claim=CLAIM, addresses=("10.0.0.1", "10.1.0.1")),
    messages.Reached(claim=CLAIM, addresses=("10.1.0.1",), sources=("10.1.0.2",), done=True),
    messages.Commit(claim=CLAIM, round=1, proof=PROOF),
    messages.Abort(claim=CLAIM, round=1, proof=PROOF, reason="gpu2: no answer"),
    messages.Admit(
        claim=CLAIM,
        master_port=29512,
        differences=("gpu3 runs torch 2.11.0, gpu1 2.13.0",),
    ),
    messages.Rival(claim=CLAIM, advert=ADVERT),
    messages.Contest(
        label=LABEL,
        claim=CLAIM,
        rival=PROOF,
        job=JOB,
        node=CARD,
        user="ann",
        standing=Standing.EXPLICIT,
        sealed=False,
        busy=True,
        unreached=True,
    ),
    messages.Redirect(claim=CLAIM, advert=ADVERT, host="gpu1"),
    messages.Dismiss(claim=CLAIM, reason="rank 0 has ended"),
    messages.Ended(claim=CLAIM, round=1, participant=WHO, how="lost", reason="exit 1", again=True),
    messages.Ended(claim=CLAIM, round=1, participant=WHO, how="left", reason="leave", closes=True),
    messages.Gone(
        claim=CLAIM, round=1, rank=3, how="lost", reason="silent for 15 s", ago_s=15.5, again=True
    ),
    messages.Waiting(claim=CLAIM, round=1, count=2),
    messages.Passed(claim=CLAIM, round=1, newer=3),
    messages.Cancel(
        claim=CLAIM,
        order=PROOF,
        user="ann",
        host="gpu2",
        reason="the loss is NaN",
        everyone=True,
        patience_s=6.0,
    ),
    messages.Cancelled(claim=CLAIM, order=PROOF, nodes=CANCELLED),
    messages.Attach(label=LABEL, claim=CLAIM, round=1, node=CARD, members=(MEMBER,)),
    messages.Attached(
        claim=CLAIM, round=1, node=NODE, members=(MEMBER,), fates=("unwatched",), returning=(0,)
    ),
    messages.Ping(claim=CLAIM),
    messages.Pong(claim=CLAIM, node=NODE),
    messages.Hail(labels=(LABEL,)),
    messages.Presence(
        node=CARD,
        release="0.1.0",
        seen_address="10.0.0.2",
        clock_s=1_795_000_000.5,
        machine="0123456789abcdef",
        nics=(
            messages.Nic(
                name="eth0",
                kind="ethernet",
                speed_mbps=10_000,
                mtu=1500,
                addresses=("10.0.0.1/24", "fd00::1/64"),
            ),
        ),
        gpus=("NVIDIA H200",),
        labels=(LABEL,),
        jobs=3,
        discovery=("mdns: browsing",),
        up_s=3600.5,
    ),
    messages.Test(label=LABEL, places=(messages.Place(address="10.0.0.2", port=1, word=NODE),)),
    messages.Tested(
        results=(messages.Tried(address="10.0.0.2", port=1, reason="no answer", took_s=3.0),)
    ),
    messages.Listen(),
    messages.Listening(port=29512),
)

REQUESTS: tuple[local.Local, ...] = (
    local.Join(
        job=JOB,
        form=Form.LAUNCHER,
        size_min=2,
        size_max=4,
        rank=1,
        nproc=8,
        timeout_s=600.0,
        netns=4026531840,
        adopt=True,
        last_call_s=5.0,
        wait=False,
        any_user=True,
        stop_grace_s=60.0,
        lost="CMD ended with exit 1",
        store=True,
        peers=("gpu7", "[fd00::7]:29491"),
        interfaces=("eth0",),
        subnets=("10.0.0.0/24",),
        software=SOFTWARE,
        require_same=("torch", "git"),
        listens=True,
    ),
    local.Join(job=JOB, form=Form.PLAIN, rank=0, heartbeat_s=1.0),
    local.Reattach(
        join=local.Join(job=JOB, form=Form.LAUNCHER, size_min=1, size_max=1),
        participant=WHO,
        config=CONFIG,
    ),
    local.StoreOpened(proof=PROOF, port=40001),
    local.StoreFailed(proof=PROOF, reason="no memory"),
    local.Alive(),
    local.Finished(),
    local.Leave(job=JOB, participant=WHO, lost=True, reason="exit 1", closes=True),
    local.Cancel(job=JOB, reason="the loss is NaN"),
    local.Adopt(token="t0ken", pid=4711),
    local.Logs(job=JOB, after=17),
    local.Metrics(),
    local.Status(),
)

REPLIES: tuple[local.Local, ...] = (
    local.Progress(
        job=JOB,
        state="following",
        leader="gpu1",
        here=2,
        size_min=2,
        size_max=4,
        present=SEEN,
        missing=(2, 3),
        running=RUNNING,
        note="gpu3: no answer",
    ),
    local.Notice(kind="hint", sentence="job bert: nobody else was heard for 10 s."),
    local.OpenStore(proof=PROOF, address="10.0.0.1"),
    local.Ready(participant=WHO, config=CONFIG, token="t0ken", found_s=0.25, waited_s=1.5),
    local.Failed(code="timeout", sentence="job bert: no rendezvous"),
    local.Failed(code="cancelled", sentence="job bert: cancelled by ann on gpu2", stop=True),
    local.Gone(
        job=JOB,
        round=1,
        rank=3,
        host="gpu4",
        address="10.0.0.4",
        how="lost",
        reason="silent for 15 s",
        ago_s=15.5,
        again=True,
    ),
    local.Waiting(job=JOB, round=1, count=2),
    local.Done(count=2),
    local.Cancelled(job=JOB, nodes=CANCELLED, elsewhere=("10.0.0.4",)),
    local.Story(
        job=JOB,
        lines=(
            local.StoryLine(
                number=18, at_s=1_795_000_000.5, kind="state", text="idle --search--> searching"
            ),
        ),
    ),
    local.Measured(text="# EOF"),
    local.Report(
        release="0.1.0",
        host="gpu1",
        node=NODE,
        pid=4711,
        socket="/run/mingled/control.sock",
        private=False,
        link_port=29400,
        addresses=("10.0.0.1",),
        discovery=("mDNS: works",),
        key_ids=("none",),
        lag=local.Lag(minute_s=0.25, worst_s=1.5),
        up_s=3600.5,
        jobs=(
            local.Job(
                job=JOB,
                label=LABEL,
                state="leading",
                leader="gpu1",
                leader_address="10.0.0.1",
                here=1,
                size_min=2,
                size_max=4,
                seats=(
                    local.Seat(
                        participant=WHO,
                        pid=4711,
                        user="ann",
                        form=Form.LAUNCHER,
                        rank=0,
                        state="waiting",
                        for_s=1.5,
                    ),
                ),
                rounds=(
                    local.Round(
                        round=1,
                        since_s=12.5,
                        master_addr="10.0.0.1",
                        master_port=29512,
                        members=(
                            local.RoundMember(
                                rank=0, host="gpu1", address="10.0.0.1", nproc=8, state="running"
                            ),
                        ),
                    ),
                ),
                nodes=(
                    messages.Seen(
                        host="gpu2", rank=None, user="ann", address="10.0.0.2", port=29490
                    ),
                ),
                missing=(2, 3),
                note="gpu3: no answer",
                story=("idle --claim--> leading",),
            ),
        ),
    ),
)
