package config

import (
	"slices"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	filev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	celv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/filters/cel/v3"

	"github.com/ambit-mesh/ambit/mesh/logfilter"
	"github.com/ambit-mesh/ambit/waypoint/strict"
)

// Logging says what of a chain's requests and connections is logged.
type Logging struct {
	// Filters are expressions of which at least one has to be true; none: all is logged.
	Filters []*logfilter.Filter
}

// Wants tells whether a request or a connection is logged.
func (l *Logging) Wants(e logfilter.Entry) bool {
	return len(l.Filters) == 0 || slices.ContainsFunc(l.Filters, func(f *logfilter.Filter) bool { return f.Matches(e) })
}

// accessLog reads what is logged; nil: nothing is said.
func (d decoder) accessLog(all []*accesslogv3.AccessLog, at *strict.Path) *Logging {
	if len(all) == 0 {
		return nil
	}
	out := &Logging{}
	whole := false
	for i, l := range all {
		at := at.Index(i)
		var file filev3.FileAccessLog
		if d.unpack(l.GetTypedConfig(), &file, at.Field("typed_config")) && file.GetPath() != "/dev/stdout" && file.GetPath() != "/dev/stderr" {
			d.add(at.Field("typed_config").Field("path"), "%q: only /dev/stdout, which is the waypoint's log", file.GetPath())
		}
		at = at.Field("filter")
		extension := l.GetFilter().GetExtensionFilter()
		switch {
		case l.GetFilter() == nil:
			whole = true
		case extension == nil:
			d.add(at, "only extension_filter, with an expression")
		default:
			if f := d.filter(extension, at.Field("extension_filter").Field("typed_config")); f != nil {
				out.Filters = append(out.Filters, f)
			}
		}
	}
	if whole {
		out.Filters = nil
	}
	return out
}

// filter reads the expression of a filter. Chains that have theirs in common share it.
func (d decoder) filter(in *accesslogv3.ExtensionFilter, at *strict.Path) *logfilter.Filter {
	var m celv3.ExpressionFilter
	if !d.unpack(in.GetTypedConfig(), &m, at) {
		return nil
	}
	if f := d.expressions[m.GetExpression()]; f != nil {
		return f
	}
	f, err := logfilter.Compile(m.GetExpression())
	if err != nil {
		d.add(at.Field("expression"), "%v", err)
		return nil
	}
	d.expressions[m.GetExpression()] = f
	return f
}
