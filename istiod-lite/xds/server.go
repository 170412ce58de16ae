package xds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/ambit-mesh/ambit/istiod-lite/auth"
)

// patience is how long a client that has asked for addresses, and not yet for authorisations, waits for the addresses.
// Node proxies ask for both at once.
const patience = time.Second

// Server serves a Hub and the hubs of waypoints by delta ADS. All fields but Unguarded are required.
type Server struct {
	Hub       *Hub
	Waypoints *Waypoints
	// Identify returns who calls, or a gRPC status that says why nobody does.
	Identify func(context.Context) (auth.Caller, error)
	// Admit returns nil for callers that may know all of the mesh, and otherwise what to tell them if they are no waypoint.
	Admit func(auth.Caller) error
	// Unguarded servers take a client's word for who it is: they are for loopback.
	Unguarded bool
	Refusals  *auth.Refusals
	Log       *slog.Logger

	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
}

// stream is a delta stream of the server.
type stream = grpc.BidiStreamingServer[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]

// StreamAggregatedResources refuses: data planes of this mesh speak the delta protocol.
func (s *Server) StreamAggregatedResources(discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return status.Error(codes.Unimplemented, "state-of-the-world xDS is not served; use DeltaAggregatedResources")
}

// DeltaAggregatedResources serves one client until it goes, or the hub drains.
func (s *Server) DeltaAggregatedResources(st discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	caller, err := s.Identify(st.Context())
	if err != nil {
		s.refuse(st.Context(), caller, err)
		return err
	}
	denied := s.Admit(caller)
	if denied != nil {
		if err := s.Waypoints.admit(caller, denied); err != nil {
			s.refuse(st.Context(), caller, err)
			return err
		}
	}
	first, err := st.Recv()
	if errors.Is(err, io.EOF) {
		return nil
	} else if err != nil {
		return err
	}
	if err := auth.MatchNode(caller, first.GetNode()); err != nil {
		err = status.Error(codes.PermissionDenied, err.Error())
		s.refuse(st.Context(), caller, err)
		return err
	}
	hub := s.Hub
	if denied != nil || isWaypoint(first.GetNode()) {
		if hub, err = s.Waypoints.find(caller, first.GetNode(), s.Unguarded); err != nil {
			s.refuse(st.Context(), caller, err)
			return err
		}
	}
	c := newConn(hub, caller, first.GetNode(), addrOf(st.Context()))
	if !hub.join(c) {
		return errDraining
	}
	log := s.Log.With("conn", c.id, "client", first.GetNode().GetId(), "account", caller.Account(), "node", caller.Node, "peer", c.peer)
	log.Info("client connected", "known", len(first.GetInitialResourceVersions()))
	err = s.serve(st, c, first, log)
	hub.leave(c)
	log.Info("client left", "cause", err, "after", time.Since(c.since).Round(time.Millisecond).String())
	return err
}

// errDraining tells a client that it should connect again: the Service before the replicas no longer leads here.
var errDraining = status.Error(codes.Unavailable, "this replica is going away; connect to another")

// serve runs the stream: this goroutine sends, another receives until the stream's context ends, which is at the latest when
// the method returns.
func (s *Server) serve(st stream, c *conn, first *discoveryv3.DeltaDiscoveryRequest, log *slog.Logger) error {
	received := make(chan error, 1)
	go receive(st, c, first, log, received)
	waited := time.AfterFunc(patience, c.hurry)
	defer waited.Stop()
	for {
		// One of three things happens: something may be owed, the client is gone, or it is to go.
		select {
		case <-c.woken:
			for _, r := range c.hub.next(c) {
				if err := st.SendMsg(r); err != nil {
					return err
				}
			}
		case err := <-received:
			return err
		case <-c.ended:
			return errDraining
		}
	}
}

// receive takes requests until there are no more, and then says why.
func receive(st stream, c *conn, req *discoveryv3.DeltaDiscoveryRequest, log *slog.Logger, done chan<- error) {
	for {
		rejected, err := c.request(req)
		if rejected != nil {
			log.Warn("client rejected resources", "type", rejected.Type, "nonce", rejected.Nonce, "cause", rejected.Rejected)
		}
		if err != nil {
			done <- status.Error(codes.InvalidArgument, err.Error())
			return
		}
		if req, err = st.Recv(); errors.Is(err, io.EOF) {
			done <- nil
			return
		} else if err != nil {
			done <- err
			return
		}
	}
}

// hurry ends the patience of mayHave.
func (c *conn) hurry() {
	c.hub.mu.Lock()
	c.patient = false
	c.hub.mu.Unlock()
	c.wake()
}

func (s *Server) refuse(ctx context.Context, caller auth.Caller, err error) {
	s.Hub.metrics.refused.Inc()
	s.Refusals.Refused(ctx, "client refused", "peer", addrOf(ctx), "account", caller.Account(), "node", caller.Node, "cause", err)
}

func addrOf(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		return p.Addr.String()
	}
	return ""
}

// NodeProxies returns an Admit that lets the node proxies' service accounts, "namespace/name", know all of the mesh, and
// nobody else anything.
func NodeProxies(accounts []string) func(auth.Caller) error {
	trusted := make(map[string]bool, len(accounts))
	for _, a := range accounts {
		trusted[a] = true
	}
	return func(c auth.Caller) error {
		if !trusted[c.Account()] {
			return fmt.Errorf("service account %s is not a node proxy's (%v) nor that of a waypoint: it is told nothing of the mesh", c.Account(), accounts)
		}
		return nil
	}
}
