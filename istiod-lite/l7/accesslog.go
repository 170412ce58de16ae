package l7

import (
	"fmt"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	filev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	celv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/filters/cel/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
	"github.com/ambit-mesh/ambit/mesh/meshconfig"
)

// Names of Envoy's extensions.
const (
	loggerFile = "envoy.access_loggers.file"
	filterCEL  = "envoy.access_loggers.extension_filters.cel"
)

// never is the expression by which nothing is logged. A chain without a log at all leaves it to the waypoint's own settings.
const never = "false"

// Logging is what of requests and connections is logged.
type Logging struct {
	// Filter is an expression of package logfilter; "" for all.
	Filter string
}

// loggingFor works out what Telemetries, one of each scope at most and the widest first, say of the access log: the narrowest counts,
// and inherits no more than the names of providers. Nil: nothing is said.
func loggingFor(m translate.Mesh, by []*cluster.Telemetry) *Logging {
	providers := m.DefaultLoggers
	var out *Logging
	if usableLogger(m, providers) {
		out = &Logging{}
	}
	for _, t := range by {
		if t == nil {
			continue
		}
		var named []string
		for _, l := range t.Logging {
			names := l.Providers
			if named = append(named, names...); len(names) == 0 {
				names = providers
			}
			if len(names) == 0 {
				names = []string{meshconfig.BuiltinLogger}
			}
			if !usableLogger(m, names) {
				continue
			}
			if out = (&Logging{l.Filter}); l.Disabled {
				out.Filter = never
			}
		}
		if len(named) > 0 {
			providers = named
		}
	}
	return out
}

// usableLogger tells whether one of some providers takes lines.
func usableLogger(m translate.Mesh, names []string) bool {
	for _, name := range names {
		if l, known := meshconfig.LoggerNamed(m.Providers, name); known && l.Usable {
			return true
		}
	}
	return false
}

// accessLog is what a chain says of the access log.
func (t Telemetry) accessLog() []*accesslogv3.AccessLog {
	if t.Logging == nil {
		return nil
	}
	out := &accesslogv3.AccessLog{Name: loggerFile, ConfigType: &accesslogv3.AccessLog_TypedConfig{
		TypedConfig: config(&filev3.FileAccessLog{Path: "/dev/stdout"})}}
	if t.Logging.Filter != "" {
		out.Filter = &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ExtensionFilter{ExtensionFilter: &accesslogv3.ExtensionFilter{
			Name: filterCEL, ConfigType: &accesslogv3.ExtensionFilter_TypedConfig{TypedConfig: config(&celv3.ExpressionFilter{Expression: t.Logging.Filter})}}}}
	}
	return []*accesslogv3.AccessLog{out}
}

// logged has what a chain carries logged.
func (t Telemetry) logged(p *tcpv3.TcpProxy) *tcpv3.TcpProxy {
	p.AccessLog = t.accessLog()
	return p
}

// loggingFaults are what stands in the way of the access log, beside what the object itself has wrong.
func loggingFaults(m translate.Mesh, t *cluster.Telemetry) []string {
	var faults []string
	for _, l := range t.Logging {
		for _, name := range l.Providers {
			logger, known := meshconfig.LoggerNamed(m.Providers, name)
			switch {
			case !known:
				faults = append(faults, fmt.Sprintf("spec.accessLogging: the mesh settings have no extension provider %q for access logs", name))
			case logger.Fault != "":
				faults = append(faults, fmt.Sprintf("spec.accessLogging: extension provider %q: %s", name, logger.Fault))
			}
		}
	}
	return faults
}
