package proxy

import (
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"net/netip"
	"strings"

	"github.com/ambit-mesh/ambit/mesh/directory"
)

// baggageOf describes a workload in the header of that name (W3C Baggage, with Istio's keys).
func baggageOf(w *directory.Workload) string {
	var b strings.Builder
	add := func(key, value string) {
		if value == "" {
			return
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(key)
		b.WriteByte('=')
		b.WriteString(escapeBaggage(value))
	}
	add("k8s.cluster.name", w.ClusterID)
	add("k8s.namespace.name", w.Namespace)
	add("k8s."+kindName(w.Kind)+".name", w.WorkloadName)
	add("service.name", w.CanonicalName)
	add("service.version", w.CanonicalRevision)
	add("cloud.region", w.Locality.Region)
	add("cloud.availability_zone", w.Locality.Zone)
	return b.String()
}

func kindName(k directory.Kind) string {
	switch k {
	case directory.KindCronJob:
		return "cronjob"
	case directory.KindJob:
		return "job"
	case directory.KindPod:
		return "pod"
	default:
		return "deployment"
	}
}

// escapeBaggage percent-encodes what a baggage value must not hold (W3C Baggage section 3.2.1.2).
func escapeBaggage(s string) string {
	plain := func(c byte) bool {
		return c > 0x20 && c < 0x7f && c != '"' && c != ',' && c != ';' && c != '\\' && c != '%'
	}
	clean := true
	for i := range len(s) {
		clean = clean && plain(s[i])
	}
	if clean {
		return s
	}
	var b strings.Builder
	for i := range len(s) {
		if plain(s[i]) {
			b.WriteByte(s[i])
		} else {
			b.WriteByte('%')
			b.WriteString(strings.ToUpper(hex.EncodeToString([]byte{s[i]})))
		}
	}
	return b.String()
}

// forwardedFor names the client's address and, if known, the service that it asked for (RFC 7239).
func forwardedFor(client netip.AddrPort, s *directory.Service) string {
	f := `for="` + client.String() + `"`
	if s != nil {
		f += ";host=" + s.Hostname
	}
	return f
}

// forwardedHost returns the host of such a header, or "".
func forwardedHost(header string) string {
	for part := range strings.SplitSeq(header, ";") {
		if host, ok := strings.CutPrefix(strings.TrimSpace(part), "host="); ok {
			return strings.Trim(host, `"`)
		}
	}
	return ""
}

// newTrace returns an id for a connection, by which both ends of its tunnel log it.
func newTrace() (id [16]byte) {
	binary.NativeEndian.PutUint64(id[:], rand.Uint64()|1) // it must not be all zero
	binary.NativeEndian.PutUint64(id[8:], rand.Uint64())
	return id
}

// The parts of a traceparent: version, trace, span and flags, with dashes between.
const (
	traceparentPrefix = "00-"
	traceparentLength = len(traceparentPrefix) + 32 + 1 + 16 + 1 + 2
)

// traceparent tells the peer a trace's id (W3C Trace Context, version 00), not sampled, with a new id for this span of it.
func traceparent(trace [16]byte) string {
	var span [8]byte
	binary.NativeEndian.PutUint64(span[:], rand.Uint64()|1)
	return traceparentPrefix + hex.EncodeToString(trace[:]) + "-" + hex.EncodeToString(span[:]) + "-00"
}

// traceOf returns the id of the trace in such a header; zero if it is no such header.
func traceOf(header string) (id [16]byte) {
	rest, ok := strings.CutPrefix(header, traceparentPrefix)
	if !ok || len(header) != traceparentLength || rest[32] != '-' {
		return id
	}
	var parsed [16]byte
	if _, err := hex.Decode(parsed[:], []byte(rest[:32])); err != nil {
		return id
	}
	return parsed
}
