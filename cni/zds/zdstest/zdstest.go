// Package zdstest is a node proxy for tests of the agent's side of the protocol: it speaks the real wire, keeps what a
// real proxy would keep, checks what a real proxy would check, and misbehaves on demand.
package zdstest

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	zdsapi "github.com/ambit-mesh/ambit/api/zds"
	"github.com/ambit-mesh/ambit/mesh/handover"
)

// Proxy is a connected node proxy. Its methods may be called at once.
type Proxy struct {
	conn *net.UnixConn
	done chan struct{}

	mu       sync.Mutex // guards the fields below
	pods     map[string]uint64
	log      []string
	snapshot bool
	refuse   map[string]string
	mute     bool
	err      error
}

// Connect connects to the socket, says hello and answers requests until the test ends or Close is called.
func Connect(t testing.TB, socket string) *Proxy {
	t.Helper()
	p, err := Dial(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// Dial is Connect without a test; the caller closes the Proxy.
func Dial(socket string) (*Proxy, error) {
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: socket, Net: "unixpacket"})
	if err != nil {
		return nil, err
	}
	p := &Proxy{conn: conn, done: make(chan struct{}), pods: map[string]uint64{}, refuse: map[string]string{}}
	hello, err := proto.Marshal(&zdsapi.ZdsHello{Version: zdsapi.Version_V1})
	if err == nil {
		_, err = conn.Write(hello)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	go func() {
		defer close(p.done)
		err := p.run()
		p.mu.Lock()
		p.err = err
		p.mu.Unlock()
	}()
	return p, nil
}

// Close ends the connection, as a proxy that ends does, and waits for its goroutine.
func (p *Proxy) Close() {
	p.conn.Close()
	<-p.done
}

// Refuse makes the proxy answer adds of the pod with the error text; an empty one lets it serve the pod again.
func (p *Proxy) Refuse(uid, text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuse[uid] = text
}

// Mute makes the proxy read requests and answer none.
func (p *Proxy) Mute() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mute = true
}

// Serves returns the UIDs of the pods that the proxy serves, sorted.
func (p *Proxy) Serves() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Sorted(maps.Keys(p.pods))
}

// NetNS returns the inode of the network namespace in which the proxy serves the pod, 0 if it does not.
func (p *Proxy) NetNS(uid string) uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pods[uid]
}

// Log returns what was asked so far, a line each.
func (p *Proxy) Log() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.log)
}

// Err is why the proxy's goroutine ended, or nil; a breach of the protocol by the agent names itself.
func (p *Proxy) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// ErrProtocol wraps what a real proxy would end its process for.
var ErrProtocol = errors.New("protocol broken by the agent")

func (p *Proxy) run() error {
	buf, oob := make([]byte, 1024), make([]byte, unix.CmsgSpace(4*4))
	kept := map[string]bool{}
	for {
		n, oobn, flags, _, err := p.conn.ReadMsgUnix(buf, oob)
		if err != nil {
			return err
		}
		if n == 0 {
			return errors.New("closed by the agent")
		}
		if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
			return fmt.Errorf("%w: message of more than %d bytes", ErrProtocol, len(buf))
		}
		fds, err := handover.Descriptors(oob[:oobn])
		if err != nil {
			return err
		}
		var req zdsapi.WorkloadRequest
		if err := proto.Unmarshal(buf[:n], &req); err != nil {
			return fmt.Errorf("%w: %w", ErrProtocol, err)
		}
		answer, err := p.apply(&req, fds, kept)
		for _, fd := range fds {
			unix.Close(fd)
		}
		if err != nil {
			return err
		}
		if answer == nil {
			continue
		}
		b, err := proto.Marshal(&zdsapi.WorkloadResponse{Payload: &zdsapi.WorkloadResponse_Ack{Ack: answer}})
		if err != nil {
			return err
		}
		if err := p.conn.SetWriteDeadline(time.Now().Add(30 * time.Second)); err != nil {
			return err
		}
		if _, err := p.conn.Write(b); err != nil {
			return err
		}
	}
}

// apply does what the request asks; no answer means that none is sent.
func (p *Proxy) apply(req *zdsapi.WorkloadRequest, fds []int, kept map[string]bool) (*zdsapi.Ack, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	want := 0
	ack := &zdsapi.Ack{}
	switch r := req.GetPayload().(type) {
	case *zdsapi.WorkloadRequest_Add:
		want = 1
		uid, info := r.Add.GetUid(), r.Add.GetWorkloadInfo()
		p.log = append(p.log, fmt.Sprintf("add %s %s/%s %s", uid, info.GetNamespace(), info.GetName(), info.GetServiceAccount()))
		if info == nil {
			return nil, fmt.Errorf("%w: add without workload info", ErrProtocol)
		}
		kept[uid] = true
		if ack.Error = p.refuse[uid]; ack.Error == "" && len(fds) == 1 && !p.mute {
			var st unix.Stat_t
			if err := unix.Fstat(fds[0], &st); err != nil {
				return nil, os.NewSyscallError("fstat", err)
			}
			p.pods[uid] = st.Ino
		}
	case *zdsapi.WorkloadRequest_Keep:
		p.log = append(p.log, "keep "+r.Keep.GetUid())
		kept[r.Keep.GetUid()] = true
		if p.snapshot {
			return nil, fmt.Errorf("%w: keep after the snapshot", ErrProtocol)
		}
	case *zdsapi.WorkloadRequest_Del:
		p.log = append(p.log, "del "+r.Del.GetUid())
		delete(p.pods, r.Del.GetUid())
	case *zdsapi.WorkloadRequest_SnapshotSent:
		p.log = append(p.log, "snapshot sent")
		if p.snapshot {
			return nil, fmt.Errorf("%w: a second snapshot", ErrProtocol)
		}
		p.snapshot = true
		maps.DeleteFunc(p.pods, func(uid string, _ uint64) bool { return !kept[uid] })
	default:
		return nil, fmt.Errorf("%w: unknown request", ErrProtocol)
	}
	if len(fds) != want {
		return nil, fmt.Errorf("%w: %d descriptors with %v", ErrProtocol, len(fds), req)
	}
	if p.mute {
		return nil, nil
	}
	return ack, nil
}
