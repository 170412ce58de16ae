package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/ambit-mesh/ambit/mesh/h2"
	"github.com/ambit-mesh/ambit/mesh/hbone"
	"github.com/ambit-mesh/ambit/mesh/telemetry"
	"github.com/ambit-mesh/ambit/waypoint/upstream"
)

// minConnectAttempts is how many endpoints are tried for a connection at least, if one after another cannot be connected to:
// nothing is lost by it.
const minConnectAttempts = 3

// replayTime bounds how long an endpoint may take for what its client said before there was an endpoint: at most maxHello.
const replayTime = 10 * time.Second

// errIdle is why a connection ended on which nothing moved for as long as its chain allows.
var errIdle = errors.New("nothing came or went for as long as the service's settings allow")

// errTooOld is why a connection ended that lived for as long as its chain allows, errNoCluster why there is none.
var (
	errTooOld    = errors.New("the connection is as old as the service's settings allow")
	errNoCluster = errors.New("not known to this waypoint: does the service exist?")
)

// tcp carries a connection as it is.
func (c *connection) tcp(ctx context.Context, cl *caller) {
	start := time.Now()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop, ok := c.authorizeTCP(cl, cancel)
	if !ok {
		return
	}
	defer stop()
	cluster, e, nc, err := c.connect(ctx)
	if err != nil {
		flag := connectFlag(ctx, err)
		c.proxy.cfg.Requests.Failed(telemetry.ConnectionLabels{Ends: c.ends(cluster, e), Flag: flag, MutualTLS: true})
		c.logTCP(start, cluster, e, nil, flag, err)
		cl.refuse(503, err.Error())
		return
	}
	defer e.EndConnection()
	s, err := cl.accept()
	if err != nil {
		_ = nc.Close()
		return // the client is gone
	}
	c.proxy.counts.TCP.Add(1)
	var counters hbone.Counters
	toServer, toClient := &counters.Sent, &counters.Received
	if _, plain := nc.(*net.TCPConn); plain { // whose relay counts as the endpoint's end of it
		toServer, toClient = toClient, toServer
	}
	live := c.proxy.cfg.Requests.Opened(telemetry.ConnectionLabels{Ends: c.ends(cluster, e), MutualTLS: true}, toClient, toServer)
	if t := c.chain.TCP; t.IdleTimeout > 0 {
		defer watch(t.IdleTimeout, func() uint64 { return counters.Sent.Load() + counters.Received.Load() }, func() { cancel(errIdle) })()
	}
	if d := c.chain.TCP.MaxDuration; d > 0 {
		defer time.AfterFunc(d, func() { cancel(fmt.Errorf("%w (%v)", errTooOld, d)) }).Stop()
	}
	if err = replay(nc, cl.said, toServer); err == nil {
		err = relay(ctx, s, nc, &counters)
	} else {
		_ = nc.Close()
		s.Reset(h2.ConnectError)
		_ = s.Close()
	}
	flag := endFlag(ctx, err)
	live.Closed(flag)
	c.logTCP(start, cluster, e, &carried{toServer.Load(), toClient.Load()}, flag, err)
}

// replay gives an endpoint what its client said before there was an endpoint, and counts it.
func replay(nc net.Conn, said []byte, count *atomic.Uint64) error {
	if len(said) == 0 {
		return nil
	}
	_ = nc.SetWriteDeadline(time.Now().Add(replayTime))
	n, err := nc.Write(said)
	_ = nc.SetWriteDeadline(time.Time{})
	count.Add(uint64(n))
	if err != nil {
		return fmt.Errorf("send what the client said first: %w", err)
	}
	return nil
}

// relay carries bytes between a client's tunnel and an endpoint until both directions have ended, and closes both.
func relay(ctx context.Context, s *hbone.Stream, nc net.Conn, counters *hbone.Counters) error {
	switch nc := nc.(type) {
	case *hbone.Stream:
		return hbone.Relayer{}.RelayStreams(ctx, s, nc, counters)
	case *tls.Conn:
		return relayTLS(ctx, s, nc, counters)
	case *net.TCPConn:
		return hbone.Relayer{}.Relay(ctx, nc, s, counters)
	}
	_ = nc.Close()
	_ = s.Close()
	return fmt.Errorf("a connection of kind %T cannot be relayed", nc)
}

// carried is how many bytes a connection has carried.
type carried struct{ toServer, toClient uint64 }

// connectFlag says why a connection was not opened.
func connectFlag(ctx context.Context, err error) telemetry.RequestFlag {
	switch {
	case ctx.Err() != nil:
		return telemetry.RequestClientGone
	case errors.Is(err, upstream.ErrOverflow):
		return telemetry.RequestOverflow
	case errors.Is(err, upstream.ErrNoEndpoint):
		return telemetry.RequestNoHealthy
	case errors.Is(err, errNoCluster):
		return telemetry.RequestNoCluster
	}
	return telemetry.RequestConnectFailed
}

// endFlag says how a connection ended.
func endFlag(ctx context.Context, err error) telemetry.RequestFlag {
	switch cause := context.Cause(ctx); {
	case err == nil:
		return telemetry.RequestOK
	case errors.Is(cause, errIdle):
		return telemetry.RequestIdle
	case errors.Is(cause, errTooOld):
		return telemetry.RequestTooLong
	case errors.Is(cause, errPolicyChange):
		return telemetry.RequestDenied
	case ctx.Err() != nil:
		return telemetry.RequestClientGone
	}
	return telemetry.RequestUpstreamEnded
}

// connect chooses a cluster and an endpoint and connects to it, or to another if that fails. The caller must EndConnection the
// endpoint. With an error cluster and endpoint are those that it concerns, and may be nil.
func (c *connection) connect(ctx context.Context) (*upstream.Cluster, *upstream.Endpoint, net.Conn, error) {
	t := c.chain.TCP
	name := t.Choose() // once for the connection, so that shares are as they should be
	cluster := c.proxy.cfg.Clusters.Lookup(name)
	if cluster == nil {
		return nil, nil, nil, fmt.Errorf("backend %q of %s is %w", name, c.chain.Name, errNoCluster)
	}
	var tried []*upstream.Endpoint
	for {
		e, err := cluster.Before(ctx, c.destination)
		switch {
		case e != nil || err != nil:
		case t.BySource:
			e, err = cluster.ChooseFor(xxhash.Sum64(c.client.Addr().AsSlice()), tried)
		default:
			e, err = cluster.Choose(tried)
		}
		if err != nil {
			return cluster, nil, nil, fmt.Errorf("%s: %w", name, err)
		}
		if err := e.BeginConnection(); err != nil {
			return cluster, e, nil, err
		}
		nc, err := e.Dial(ctx)
		if err == nil {
			return cluster, e, nc, nil
		}
		e.EndConnection()
		if tried = append(tried, e); len(tried) >= max(t.ConnectAttempts, minConnectAttempts) || ctx.Err() != nil {
			return cluster, e, nil, err
		}
	}
}

// logTCP writes the line of a connection. moved is nil if it was not opened.
func (c *connection) logTCP(start time.Time, cluster *upstream.Cluster, e *upstream.Endpoint, moved *carried, flag telemetry.RequestFlag, err error) {
	log := c.proxy.cfg.AccessLog
	if log == nil || !c.wanted(entry{c: c, cluster: cluster, endpoint: e, took: time.Since(start)}, err != nil, len(c.audits) > 0) {
		return
	}
	level := slog.LevelInfo
	if err != nil {
		level = slog.LevelError
	}
	attrs := auditAttrs(c.attrs(make([]slog.Attr, 0, 12), start, e), c.audits)
	if moved != nil {
		attrs = append(attrs, slog.Uint64("bytes_sent", moved.toClient), slog.Uint64("bytes_recv", moved.toServer))
	}
	if c.asked != "" {
		attrs = append(attrs, slog.String("tls.server_name", printable(c.asked)))
	}
	if flag != telemetry.RequestOK {
		attrs = append(attrs, slog.String("response_flags", flag.String()))
	}
	if err != nil {
		attrs = append(attrs, slog.String("error", err.Error()))
	}
	log.LogAttrs(context.Background(), level, "connection complete", attrs...)
}

// watch calls over when moved has returned the same for limit, or up to half as long again. stop ends it.
func watch(limit time.Duration, moved func() uint64, over func()) (stop func()) {
	w := &watcher{step: limit / 2, moved: moved, over: over, last: moved()}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer = time.AfterFunc(w.step, w.look)
	return w.stop
}

// watcher is the state of watch.
type watcher struct {
	step  time.Duration
	moved func() uint64
	over  func()

	mu    sync.Mutex // guards what follows
	timer *time.Timer
	last  uint64
	same  int // looks in a row that saw nothing move
}

func (w *watcher) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch now := w.moved(); {
	case w.timer == nil: // stopped
		return
	case now != w.last:
		w.last, w.same = now, 0
	default:
		w.same++
	}
	if w.same >= 2 {
		w.over()
		return
	}
	w.timer.Reset(w.step)
}

func (w *watcher) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer.Stop()
	w.timer = nil
}
