package handover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxSessions bounds how many processes are served at once; more wait.
const maxSessions = 16

// Holder has sockets. A Server calls its methods, for several sessions at once, but one after another for each.
type Holder interface {
	// Lend returns duplicates of the sockets of a namespace, which the server closes, and whether nobody serves them.
	Lend(s *Session, ns NetNS) (sockets []Socket, orphaned bool)
	// Taken says that the session's process serves the sockets of a namespace until the session's end.
	Taken(s *Session, ns NetNS)
	// Deposit gives sockets to the holder, who owns them unless there is an error, in place of what it has of the namespace.
	// None gives up what the session has deposited.
	Deposit(s *Session, ns NetNS, sockets []Socket) error
	// Ended is the last call for a session.
	Ended(s *Session)
}

// Session is one client of a Server.
type Session struct {
	// Peer is the name by which the client introduced itself.
	Peer string
}

// Server serves a Holder's sockets.
type Server struct {
	// Name introduces this process. Required.
	Name string
	// Holder has the sockets. Required.
	Holder Holder
	// Timeout bounds the hello and each write. Zero means DefaultTimeout.
	Timeout time.Duration
	// Logger takes sessions that come, fail and go. Required.
	Logger *slog.Logger
}

// Serve accepts clients until the context ends; it closes the listener and every session, waits for their ends and returns
// nil. An error means that the listener broke.
func (s *Server) Serve(ctx context.Context, ln *net.UnixListener) error {
	var sessions sync.WaitGroup
	defer sessions.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer ln.Close()
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	slots := make(chan struct{}, maxSessions)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		conn, err := ln.AcceptUnix()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return nil
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ECONNABORTED):
			<-slots
			s.Logger.Warn("cannot accept a hand-over session for now", "error", err)
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
			continue
		case err != nil:
			return fmt.Errorf("accept hand-over session: %w", err)
		}
		sessions.Go(func() {
			defer func() { <-slots }()
			s.serve(ctx, conn)
		})
	}
}

func (s *Server) timeout() time.Duration {
	if s.Timeout == 0 {
		return DefaultTimeout
	}
	return s.Timeout
}

// serve serves one session to its end.
func (s *Server) serve(ctx context.Context, conn *net.UnixConn) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	session, err := s.hello(conn)
	if err != nil {
		if ctx.Err() == nil {
			s.Logger.Warn("hand-over session turned away", "error", err)
		}
		return
	}
	s.Logger.Info("hand-over session", "with", session.Peer)
	defer s.Holder.Ended(session)
	for {
		if err := s.step(conn, session); err != nil {
			if ctx.Err() == nil && !errors.Is(err, io.EOF) {
				s.Logger.Warn("hand-over session ended", "with", session.Peer, "error", err)
			} else if ctx.Err() == nil {
				s.Logger.Info("hand-over session ended", "with", session.Peer)
			}
			return
		}
	}
}

func (s *Server) hello(conn *net.UnixConn) (*Session, error) {
	if err := proveRoot(conn); err != nil {
		return nil, err
	}
	if err := conn.SetReadDeadline(time.Now().Add(s.timeout())); err != nil {
		return nil, err
	}
	var r request
	fds, err := receive(conn, &r)
	closeAll(fds)
	if err != nil {
		return nil, fmt.Errorf("read hello: %w", err)
	}
	if r.Op != opHello {
		return nil, fmt.Errorf("%w: %q before hello", errProtocol, r.Op)
	}
	answer := response{Newest: newest, Oldest: oldest, Name: s.Name}
	_, versionErr := agree(r.Newest, r.Oldest)
	if versionErr != nil {
		answer.Error = versionErr.Error()
	}
	if err := send(conn, answer, nil, s.timeout()); err != nil {
		return nil, fmt.Errorf("answer hello: %w", err)
	}
	return &Session{Peer: r.Name}, errors.Join(versionErr, conn.SetReadDeadline(time.Time{}))
}

// step serves one request.
func (s *Server) step(conn *net.UnixConn, session *Session) error {
	var r request
	fds, err := receive(conn, &r)
	if err != nil {
		return err
	}
	if r.Op != opDeposit && len(fds) > 0 {
		closeAll(fds)
		return fmt.Errorf("%w: %q with %d descriptors", errProtocol, r.Op, len(fds))
	}
	var answer response
	switch r.Op {
	case opLend:
		return s.lend(conn, session, r.NetNS)
	case opTaken:
		s.Holder.Taken(session, r.NetNS)
	case opDeposit:
		sockets, err := join(r.Sockets, fds)
		if err != nil {
			return err
		}
		if err := s.deposit(session, r.NetNS, sockets); err != nil {
			answer.Error = err.Error()
		}
	default:
		// A later release asks for what this one does not know.
		answer.Error = fmt.Sprintf("unknown operation %q", r.Op)
	}
	return send(conn, answer, nil, s.timeout())
}

func (s *Server) deposit(session *Session, ns NetNS, sockets []Socket) error {
	good, err := verify(ns, sockets)
	if err == nil {
		err = s.Holder.Deposit(session, ns, good)
	}
	if err != nil {
		closeSockets(good)
	}
	return err
}

// lend answers with all sockets of a namespace, in as many packets as it takes.
func (s *Server) lend(conn *net.UnixConn, session *Session, ns NetNS) error {
	sockets, orphaned := s.Holder.Lend(session, ns)
	defer closeSockets(sockets)
	for {
		some := sockets[:min(len(sockets), MaxDescriptors)]
		rest := sockets[len(some):]
		answer := response{Sockets: namesOf(some), More: len(rest) > 0, Orphaned: orphaned}
		if err := send(conn, answer, some, s.timeout()); err != nil {
			return err
		}
		if len(rest) == 0 {
			return nil
		}
		sockets = rest
	}
}

// gone tells whether the other side of an idle connection has closed it.
func gone(conn *net.UnixConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return true
	}
	over := false
	cerr := raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		n, err := unix.Poll(fds, 0)
		over = err == nil && n > 0 && fds[0].Revents&(unix.POLLHUP|unix.POLLRDHUP|unix.POLLERR) != 0
	})
	return cerr != nil || over
}
