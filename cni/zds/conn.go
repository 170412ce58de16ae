package zds

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	zdsapi "github.com/ambit-mesh/ambit/api/zds"
)

// maxMessage bounds a message from a proxy, in bytes. Real ones are a hello, or an acknowledgement with an error text.
const maxMessage = 64 << 10

type kind int

const (
	add kind = iota
	keep
	del
	snapshotSent
)

// request is one message to one proxy. err may be read once done is closed.
type request struct {
	kind kind
	uid  string
	pod  *pod // of add
	done chan struct{}
	err  error
}

func (r *request) finish(err error) {
	r.err = err
	close(r.done)
}

// conn is a proxy that said hello.
type conn struct {
	unix *net.UnixConn
	wake chan struct{} // capacity 1: something was queued

	// resolvers: the proxy's hello asks how pods resolve names.
	resolvers bool

	// The fields below are guarded by Server.mu.
	queue  []*request
	served map[string]netnsKey // what the proxy acknowledged
}

// addLocked queues an add, or returns the one that is still queued.
func (c *conn) addLocked(p *pod) *request {
	for _, r := range c.queue {
		if r.kind == add && r.pod == p {
			return r
		}
	}
	return c.enqueueLocked(&request{kind: add, uid: p.UID, pod: p})
}

func (c *conn) enqueueLocked(r *request) *request {
	r.done = make(chan struct{})
	c.queue = append(c.queue, r)
	select {
	case c.wake <- struct{}{}:
	default:
	}
	return r
}

// handle serves one proxy until it goes away, breaks the protocol or the context ends.
func (s *Server) handle(ctx context.Context, u *net.UnixConn) {
	defer u.Close()
	stop := context.AfterFunc(ctx, func() { u.Close() })
	defer stop()
	features, err := s.hello(u)
	if err != nil {
		if ctx.Err() == nil {
			s.cfg.Logger.Warn("node proxy turned away", "error", err)
		}
		return
	}
	c := &conn{unix: u, wake: make(chan struct{}, 1), served: map[string]netnsKey{}, resolvers: slices.Contains(features, zdsapi.Feature_RESOLVER)}
	s.join(c)
	answers := make(chan answer)
	quit := make(chan struct{})
	read := make(chan struct{})
	go func() {
		defer close(read)
		readAnswers(u, answers, quit)
	}()
	err = s.serve(ctx, c, answers)
	close(quit)
	u.Close()
	<-read
	s.leave(c)
	if ctx.Err() == nil {
		s.cfg.Logger.Info("node proxy disconnected", "reason", err)
	}
}

// hello reads a proxy's hello and returns what it asks for beyond the protocol.
func (s *Server) hello(u *net.UnixConn) ([]zdsapi.Feature, error) {
	if err := u.SetDeadline(time.Now().Add(s.cfg.AckTimeout)); err != nil {
		return nil, err
	}
	var hello zdsapi.ZdsHello
	if err := receive(u, make([]byte, maxMessage), &hello); err != nil {
		return nil, fmt.Errorf("read hello: %w", err)
	}
	if hello.GetVersion() != zdsapi.Version_V1 {
		return nil, fmt.Errorf("hello names version %v, this agent speaks %v", hello.GetVersion(), zdsapi.Version_V1)
	}
	return hello.GetFeatures(), u.SetDeadline(time.Time{})
}

// join makes c the newest connection, with the snapshot queued.
func (s *Server) join(c *conn) {
	s.mu.Lock()
	for _, uid := range slices.Sorted(maps.Keys(s.pods)) {
		if p := s.pods[uid]; p.NetNS != nil {
			c.addLocked(p)
		} else {
			c.enqueueLocked(&request{kind: keep, uid: uid})
		}
	}
	c.enqueueLocked(&request{kind: snapshotSent})
	s.conns = append(s.conns, c)
	s.broadcastLocked()
	n, pods := len(s.conns), len(s.pods)
	s.mu.Unlock()
	s.cfg.Logger.Info("node proxy connected", "connected", n, "pods", pods)
	s.cfg.Observe(Event{Connected: n})
}

// leave ends the requests of c. If it was the newest, the next one is told of the pods that it was not told of.
func (s *Server) leave(c *conn) {
	s.mu.Lock()
	newest := s.conns[len(s.conns)-1] == c
	s.conns = slices.DeleteFunc(s.conns, func(o *conn) bool { return o == c })
	for _, r := range c.queue {
		r.finish(errGone)
	}
	c.queue = nil
	if newest && len(s.conns) > 0 {
		heir := s.conns[len(s.conns)-1]
		for _, uid := range slices.Sorted(maps.Keys(s.pods)) {
			// A second snapshot breaks the protocol; an add of a pod that the proxy serves does not.
			if p := s.pods[uid]; p.NetNS != nil && heir.served[uid] != p.key {
				heir.addLocked(p)
			}
		}
	}
	s.broadcastLocked()
	n := len(s.conns)
	s.mu.Unlock()
	s.cfg.Observe(Event{Connected: n})
}

// serve sends what is queued, each request after the answer to the one before.
func (s *Server) serve(ctx context.Context, c *conn, answers <-chan answer) error {
	for {
		r := s.next(c)
		if r == nil {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-c.wake:
			case a := <-answers:
				if a.err == nil {
					return errors.New("answer to no request")
				}
				return a.err
			}
			continue
		}
		refused, err := s.exchange(c, r, answers)
		if err == nil && refused != "" {
			err = fmt.Errorf("%w: %s", ErrRefused, refused)
		}
		s.answered(c, r, err)
		if err != nil && !errors.Is(err, ErrRefused) && !errors.Is(err, ErrSuperseded) {
			return err
		}
	}
}

// next returns the request at the head of the queue, where it stays until it is answered, or nil.
func (s *Server) next(c *conn) *request {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(c.queue) == 0 {
		return nil
	}
	return c.queue[0]
}

// exchange sends one request and waits for the answer, which is the proxy's error text. An error means that the
// connection is of no more use, or, if it is ErrSuperseded, that nothing was sent.
func (s *Server) exchange(c *conn, r *request, answers <-chan answer) (refused string, err error) {
	if err := s.send(c, r); err != nil {
		return "", err
	}
	timeout := time.NewTimer(s.cfg.AckTimeout)
	defer timeout.Stop()
	select {
	case a := <-answers:
		return a.refused, a.err
	case <-timeout.C:
		return "", fmt.Errorf("no answer within %v", s.cfg.AckTimeout)
	}
}

func (s *Server) send(c *conn, r *request) error {
	var msg zdsapi.WorkloadRequest
	switch r.kind {
	case add:
		info := &zdsapi.WorkloadInfo{Name: r.pod.Name, Namespace: r.pod.Namespace, ServiceAccount: r.pod.ServiceAccount}
		if c.resolvers { // an older proxy, or a peer's, takes small packets only
			info.Resolver = r.pod.Resolver
		}
		msg.Payload = &zdsapi.WorkloadRequest_Add{Add: &zdsapi.AddWorkload{Uid: r.uid, WorkloadInfo: info}}
	case keep:
		msg.Payload = &zdsapi.WorkloadRequest_Keep{Keep: &zdsapi.KeepWorkload{Uid: r.uid}}
	case del:
		msg.Payload = &zdsapi.WorkloadRequest_Del{Del: &zdsapi.DelWorkload{Uid: r.uid}}
	case snapshotSent:
		msg.Payload = &zdsapi.WorkloadRequest_SnapshotSent{SnapshotSent: &zdsapi.SnapshotSent{}}
	}
	b, err := proto.Marshal(&msg)
	if err != nil {
		return err
	}
	if err := c.unix.SetWriteDeadline(time.Now().Add(s.cfg.AckTimeout)); err != nil {
		return err
	}
	if r.kind != add {
		_, err := c.unix.Write(b)
		return err
	}
	raw, err := r.pod.NetNS.SyscallConn()
	if errors.Is(err, os.ErrClosed) {
		return ErrSuperseded
	}
	if err != nil {
		return err
	}
	// Inside Control the descriptor cannot be closed and its number not be reused.
	cerr := raw.Control(func(fd uintptr) { _, _, err = c.unix.WriteMsgUnix(b, unix.UnixRights(int(fd)), nil) })
	if cerr != nil {
		return ErrSuperseded
	}
	return err
}

// answered takes the request from the queue and tells whoever waits for it.
func (s *Server) answered(c *conn, r *request, err error) {
	s.mu.Lock()
	c.queue = c.queue[1:]
	// A pod that was deleted meanwhile has its removal queued behind this.
	if r.kind == add && err == nil && s.pods[r.uid] == r.pod {
		c.served[r.uid] = r.pod.key
	}
	n := len(s.conns)
	broken := err
	if err != nil && !errors.Is(err, ErrRefused) && !errors.Is(err, ErrSuperseded) {
		broken = errGone
	}
	r.finish(broken)
	s.mu.Unlock()
	if r.uid != "" && broken == err {
		s.cfg.Observe(Event{Connected: n, UID: r.uid, Err: err})
	}
}

// answer is what a proxy sent, or why nothing more comes.
type answer struct {
	refused string
	err     error
}

// readAnswers passes answers on until the connection ends; the last one has an error. A proxy that goes away while it
// has nothing to answer is noticed by it at once.
func readAnswers(u *net.UnixConn, answers chan<- answer, quit <-chan struct{}) {
	buf := make([]byte, maxMessage)
	for {
		var a answer
		var response zdsapi.WorkloadResponse
		switch err := receive(u, buf, &response); {
		case err != nil:
			a.err = err
		case response.GetAck() == nil:
			a.err = errors.New("an answer that is no acknowledgement")
		default:
			a.refused = response.GetAck().GetError()
		}
		select {
		case answers <- a:
		case <-quit:
			return
		}
		if a.err != nil {
			return
		}
	}
}

// receive reads one message. A packet of no bytes is both an empty message and the end of the stream; no message of a
// proxy is empty.
func receive(u *net.UnixConn, buf []byte, m proto.Message) error {
	n, _, flags, _, err := u.ReadMsgUnix(buf, nil)
	switch {
	case err != nil:
		return err
	case flags&unix.MSG_TRUNC != 0:
		return fmt.Errorf("message of more than %d bytes", len(buf))
	case n == 0:
		return errors.New("closed by the node proxy")
	}
	return proto.Unmarshal(buf[:n], m)
}
