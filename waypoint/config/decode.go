package config

import (
	"net/netip"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/mesh/logfilter"
	"github.com/ambit-mesh/ambit/waypoint/strict"
)

// decoder reads one resource. What it cannot honour it reports, and goes on, so that a report is whole.
type decoder struct {
	report *strict.Report
	table  strict.Table // what is understood
	hosts  bool         // endpoints may be host names
	// expressions are the filters of the access log that were read so far.
	expressions map[string]*logfilter.Filter
}

// decode reads a resource of the message's type into it and hands it to read, unless the type is wrong or it is broken. The
// error names all fields that cannot be honoured.
func decode[M proto.Message](a *anypb.Any, table strict.Table, into M, read func(d decoder, m M)) error {
	d := decoder{report: new(strict.Report), table: table, expressions: map[string]*logfilter.Filter{}}
	if d.unpack(a, into, nil) {
		read(d, into)
	}
	return d.report.Err()
}

// add reports a problem.
func (d decoder) add(at *strict.Path, format string, args ...any) { d.report.Add(at, format, args...) }

// named reports a resource whose name inside is not the one under which it was sent.
func (d decoder) named(field, inside, outside string) {
	if inside != outside {
		d.add(root.Field(field), "is %q, but the resource was sent as %q", inside, outside)
	}
}

// unpack is strict.Table.Unpack.
func (d decoder) unpack(a *anypb.Any, into proto.Message, at *strict.Path) bool {
	return d.table.Unpack(a, into, at, d.report)
}

// root is the path to a resource.
var root *strict.Path

// duration reads a duration that is not negative; otherwise, if there is none.
func (d decoder) duration(v *durationpb.Duration, at *strict.Path, otherwise time.Duration) time.Duration {
	if v == nil {
		return otherwise
	}
	if v.CheckValid() != nil || v.AsDuration() < 0 {
		d.add(at, "a duration that is not negative, not %d.%09d s", v.GetSeconds(), v.GetNanos())
		return otherwise
	}
	return v.AsDuration()
}

// number is a wrapped number; otherwise, if there is none.
func number(v *wrapperspb.UInt32Value, otherwise uint32) uint32 {
	if v == nil {
		return otherwise
	}
	return v.GetValue()
}

// bounded is number of at least 1 and at most the last argument.
func (d decoder) bounded(v *wrapperspb.UInt32Value, at *strict.Path, otherwise, most uint32) uint32 {
	n := number(v, otherwise)
	if n < 1 || n > most {
		d.add(at, "1 to %d, not %d", most, n)
		return otherwise
	}
	return n
}

// address reads an IP address and port.
func (d decoder) address(a *corev3.Address, at *strict.Path) netip.AddrPort {
	s := a.GetSocketAddress()
	at = at.Field("socket_address")
	if s == nil {
		d.add(at, "required")
		return netip.AddrPort{}
	}
	ip, err := netip.ParseAddr(s.GetAddress())
	if err != nil || ip.Zone() != "" {
		d.add(at.Field("address"), "an IP address, not %q", s.GetAddress())
	}
	return netip.AddrPortFrom(ip.Unmap(), d.socketPort(s, at))
}

// port reads the port of an address that has a name in it.
func (d decoder) port(a *corev3.Address, at *strict.Path) uint16 {
	return d.socketPort(a.GetSocketAddress(), at.Field("socket_address"))
}

func (d decoder) socketPort(s *corev3.SocketAddress, at *strict.Path) uint16 {
	if s.GetPortValue() < 1 || s.GetPortValue() > 65535 {
		d.add(at.Field("port_value"), "1 to 65535, not %d", s.GetPortValue())
	}
	if s.GetProtocol() != corev3.SocketAddress_TCP {
		d.add(at.Field("protocol"), "only TCP")
	}
	return uint16(s.GetPortValue())
}

// ads reports a source of configuration that is not the stream on which the resource came.
func (d decoder) ads(s *corev3.ConfigSource, at *strict.Path) {
	if s.GetAds() == nil && s.GetSelf() == nil {
		d.add(at, "must be ads: there is one stream")
	}
}
