package proxy

import (
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

// newTraceparent begins a trace (W3C Trace Context, version 00), not sampled.
func newTraceparent() string {
	var id [24]byte
	for i := 0; i < len(id); i += 8 {
		v := rand.Uint64() | 1 // neither id may be all zero
		for j := range 8 {
			id[i+j] = byte(v >> (8 * j))
		}
	}
	return "00-" + hex.EncodeToString(id[:16]) + "-" + hex.EncodeToString(id[16:]) + "-00"
}
