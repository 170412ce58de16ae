package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/mesh/hbone"
	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/identity/identitytest"
	"github.com/ambit-mesh/ambit/mesh/telemetry"
)

// TestClaimedIdentity: who shows another's certificate and is refused before the signature with its key would have failed, is
// logged as claiming that name, and counted as nobody.
func TestClaimedIdentity(t *testing.T) {
	ca, err := identitytest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	svid := func(domain, name string) *identity.SVID {
		s, err := ca.SVID(identity.Identity{TrustDomain: domain, Namespace: "ns", ServiceAccount: name})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	victim, thief, self := svid("elsewhere", "victim"), svid("elsewhere", "thief"), svid("cluster.local", "web")
	stolen := &tls.Certificate{Certificate: victim.TLS.Certificate, PrivateKey: thief.TLS.PrivateKey}

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		client, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			return // Accept tells
		}
		defer client.Close()
		c := tls.Client(client, &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, InsecureSkipVerify: true,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return stolen, nil }})
		_, _ = c.Read(make([]byte, 1))
	}()
	nc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	refused := tls.Server(nc, identity.ServerTLS(self, nil)).HandshakeContext(t.Context())
	if refused == nil {
		t.Fatal("the thief is accepted")
	}

	b := newBench(t)
	b.ctx = t.Context()
	var log bytes.Buffer
	b.node.Metrics = telemetry.NewMetrics(b.reg)
	b.node.AccessLog = telemetry.NewAccessLog(telemetry.NewLogger(&log, telemetry.FormatPlain, slog.LevelInfo), 1)
	b.handshakeRefused(nc, refused)
	nc.Close()
	<-ended

	uri := victim.Identity.String()
	if line := log.String(); !strings.Contains(line, " src.claimed_identity="+uri+" ") || strings.Contains(line, " src.identity=") ||
		!strings.Contains(line, "claims to be "+uri) || !strings.Contains(line, "response_flags=TLS_FAILURE") {
		t.Errorf("logged: %s", line)
	}
	if b.conns.len() != 0 {
		t.Error("the connection is not forgotten")
	}
	if series := seriesOf(t, b.reg, "istio_tcp_connections_failed_total"); len(series) != 1 || strings.Contains(series[0], "elsewhere") {
		t.Errorf("counted: %v", series)
	}
}

// rejections counts as telemetry.Trust does.
type rejections int

func (r *rejections) Rejected(telemetry.Reporter) { *r++ }

// TestFlags: whatever a tunnel fails for has its flag, on either side, and is counted under that.
func TestFlags(t *testing.T) {
	verify := func(r identity.VerifyReason) error { return &identity.VerifyError{Reason: r, Err: errors.New("test")} }
	dial := func(stage string, err error) error { return &hbone.DialError{Stage: stage, Err: err} }
	for _, tc := range []struct {
		name                string
		err                 error
		source, destination telemetry.Flag // FlagNone: it does not come about there
	}{
		{"no certificate of the own pod", fmt.Errorf("get certificate: %w", errNoCertificate), telemetry.FlagIdentity, telemetry.FlagIdentity},
		{"the peer shows none", verify(identity.ReasonNoCertificate), telemetry.FlagTLS, telemetry.FlagTLS},
		{"untrusted", verify(identity.ReasonUntrusted), telemetry.FlagTLS, telemetry.FlagTLS},
		{"expired", verify(identity.ReasonExpired), telemetry.FlagTLS, telemetry.FlagTLS},
		{"no identity", verify(identity.ReasonNoIdentity), telemetry.FlagTLS, telemetry.FlagTLS},
		{"somebody else", verify(identity.ReasonUnexpected), telemetry.FlagTLS, telemetry.FlagNone},
		{"foreign trust domain", verify(identity.ReasonTrustDomain), telemetry.FlagNone, telemetry.FlagTLS},
		{"revoked", verify(identity.ReasonRevoked), telemetry.FlagRevoked, telemetry.FlagRevoked},
		{"the peer finds us revoked", alertRevoked, telemetry.FlagRevoked, telemetry.FlagRevoked},
		{"the peer refuses us", tls.AlertError(42), telemetry.FlagTLS, telemetry.FlagTLS},
	} {
		if err := dial(hbone.StageTLS, tc.err); tc.source != telemetry.FlagNone && flagOf(err) != tc.source {
			t.Errorf("%s: %s at the source, want %s", tc.name, flagOf(err), tc.source)
		}
		if tc.destination == telemetry.FlagNone {
			continue
		}
		b := newBench(t)
		b.ctx = t.Context()
		var revoked rejections
		b.node.Metrics, b.node.Revocations = telemetry.NewMetrics(b.reg), &revoked
		b.node.AccessLog = telemetry.NewAccessLog(slog.New(slog.DiscardHandler), 1)
		ours, theirs := net.Pipe()
		b.handshakeRefused(ours, tc.err)
		ours.Close()
		theirs.Close()
		if series := seriesOf(t, b.reg, "istio_tcp_connections_failed_total"); len(series) != 1 || !strings.Contains(series[0], `"`+tc.destination.String()+`"`) {
			t.Errorf("%s: counted at the destination as %v, want %s", tc.name, series, tc.destination)
		}
		if (revoked == 1) != (tc.destination == telemetry.FlagRevoked) {
			t.Errorf("%s: %d rejections", tc.name, revoked)
		}
	}
	for _, tc := range []struct {
		err  error
		want telemetry.Flag
	}{
		{dial(hbone.StageConnect, context.DeadlineExceeded), telemetry.FlagNetworkPolicy},
		{dial(hbone.StageConnect, errors.New("refused")), telemetry.FlagConnect},
		{dial(hbone.StageSettings, errors.New("silence")), telemetry.FlagH2},
		{&hbone.StatusError{Status: statusDenied}, telemetry.FlagDenied},
		{&hbone.StatusError{Status: statusUnavailable}, telemetry.FlagConnect},
		{errNotRegistered, telemetry.FlagUnregistered},
	} {
		if got := flagOf(tc.err); got != tc.want {
			t.Errorf("%v: %s, want %s", tc.err, got, tc.want)
		}
	}
}

// seriesOf returns the labels of a metric's series.
func seriesOf(t *testing.T, reg *prometheus.Registry, name string) (found []string) {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			found = append(found, m.String())
		}
	}
	return found
}
