package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/mesh/directory"
	"github.com/ambit-mesh/ambit/mesh/h2"
	"github.com/ambit-mesh/ambit/mesh/hbone"
	"github.com/ambit-mesh/ambit/mesh/lookup"
)

func TestEndpointFault(t *testing.T) {
	dial := func(stage string, err error) error { return &hbone.DialError{Stage: stage, Err: err} }
	connect := func(err error) error {
		return &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", err)}
	}
	alert := func(text string) error { return &net.OpError{Op: "remote error", Err: errors.New(text)} }
	for _, tt := range []struct {
		err            error
		another, fault bool
	}{
		{&hbone.StatusError{Status: 503}, true, true},
		{&hbone.StatusError{Status: 401}, false, false},
		{&hbone.StatusError{Status: 400}, false, false},
		{dial(hbone.StageConnect, connect(syscall.ECONNREFUSED)), true, true},
		{dial(hbone.StageConnect, context.DeadlineExceeded), true, true},
		{dial(hbone.StageConnect, connect(syscall.EHOSTUNREACH)), true, true},
		{dial(hbone.StageTLS, alert("tls: internal error")), true, true},
		{dial(hbone.StageTLS, alert("tls: bad certificate")), true, false},
		{dial(hbone.StageTLS, alert("tls: revoked certificate")), true, false},
		{dial(hbone.StageTLS, errors.New("verify peer: not the certificate of whom was expected")), true, true},
		{dial(hbone.StageResponse, h2.ErrUnprocessed), true, true},
		{dial(hbone.StageResponse, h2.ErrDraining), true, true},
		{errNoAnswer, true, true},
		{dial(hbone.StageResponse, hbone.ErrMayHaveArrived), false, true},
		{dial(hbone.StageConnect, connect(syscall.ENETUNREACH)), true, false},
		{dial(hbone.StageConnect, connect(syscall.EADDRNOTAVAIL)), true, false},
		{dial(hbone.StageTLS, fmt.Errorf("get certificate: %w", errNoCertificate)), false, false},
		{dial(hbone.StageConnect, connect(syscall.EMFILE)), false, false},
		{hbone.ErrPoolClosed, false, false},
		{&hbone.DialError{Stage: hbone.StageConnect, Err: hbone.ErrTooManyConnections}, false, false},
		{noAddressError{fmt.Errorf("look up db.example: %w", lookup.ErrBusy)}, true, false},
		{noAddressError{fmt.Errorf("look up db.example: %w", errNoAnswer)}, true, false},
		{noAddressError{errNoFamily}, true, false},
		{fmt.Errorf("host db.example: %w", connect(syscall.ECONNREFUSED)), true, true},
	} {
		if got := worthAnother(tt.err); got != tt.another {
			t.Errorf("%v: worth another: %v, want %v", tt.err, got, tt.another)
		}
		if got := endpointFault(tt.err); got != tt.fault {
			t.Errorf("%v: the endpoint's fault: %v, want %v", tt.err, got, tt.fault)
		}
	}
}

// TestPatience: an endpoint that does not answer is left after a while, but not once it may have what the application said.
func TestPatience(t *testing.T) {
	for _, tt := range []struct {
		name string
		last bool
		said func() bool
		left bool
	}{
		{"nothing can have been said", false, nil, true},
		{"nothing was said", false, func() bool { return false }, true},
		{"something was said", false, func() bool { return true }, false},
		{"the last endpoint", true, nil, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := patience(t.Context(), tt.last, tt.said)
			defer cancel()
			<-time.After(2 * answerPatience)
			if left := errors.Is(context.Cause(ctx), errNoAnswer); left != tt.left {
				t.Errorf("%s: left is %v, want %v", tt.name, left, tt.left)
			}
		})
	}
}

func TestFirstCause(t *testing.T) {
	a, b := errors.New("a"), errors.New("b")
	slow := fmt.Errorf("endpoint: %w", errNoAnswer)
	none := fmt.Errorf("service: %w", directory.ErrNoEndpoint)
	for _, tt := range []struct{ first, next, want error }{
		{nil, a, a}, {a, b, a}, {a, slow, a}, {slow, b, b}, {slow, none, slow}, {a, none, a},
	} {
		if got := firstCause(tt.first, tt.next); got != tt.want {
			t.Errorf("of %v and %v the cause is %v, want %v", tt.first, tt.next, got, tt.want)
		}
	}
}

// TestRouteTellsWhatItChoseFrom: of a waypoint's endpoints another may be tried, also for a destination that is a pod.
func TestRouteTellsWhatItChoseFrom(t *testing.T) {
	n := newTestNode(t,
		pod("client", "10.0.0.1", tunnelled),
		pod("web", "10.0.0.2", tunnelled, member("web", port(80, 8080))),
		pod("web2", "10.0.0.3", tunnelled, member("web", port(80, 8080))),
		pod("way", "10.0.0.5", tunnelled, member("way", port(15008, 15008))),
		pod("way2", "10.0.0.6", tunnelled, member("way", port(15008, 15008))),
		pod("guarded", "10.0.0.7", tunnelled, func(w *workload.Workload) { w.Waypoint = gateway("way") }),
		svc("web", "10.1.0.1"),
		svc("way", "10.1.0.6", func(s *workload.Service) { s.Ports = []*workload.Port{port(15008, 15008)} }),
	)
	self := n.Directory.WorkloadByPod("ns", "client", "client")
	for _, tt := range []struct {
		dst, picked string
		tried       []string
		more        bool
	}{
		{dst: "192.0.2.1:443"},
		{dst: "10.0.0.2:8080"},
		{dst: "10.1.0.1:80", picked: "web", more: true},
		{dst: "10.1.0.1:80", picked: "web", tried: []string{"Kubernetes//Pod/ns/web"}},
		{dst: "10.0.0.7:80", picked: "way", more: true},
		{dst: "10.0.0.7:80", picked: "way", tried: []string{"Kubernetes//Pod/ns/way"}},
	} {
		d, err := n.route(self, netip.MustParseAddrPort(tt.dst), tt.tried)
		if err != nil {
			t.Fatalf("%s: %v", tt.dst, err)
		}
		picked := ""
		if d.picked != nil {
			picked = d.picked.Hostname
		}
		if picked != tt.picked || d.more != tt.more {
			t.Errorf("%s with %v tried: picked of %q, more %v; want %q, %v", tt.dst, tt.tried, picked, d.more, tt.picked, tt.more)
		}
	}
}
