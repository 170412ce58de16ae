package meshconfig

import (
	"slices"

	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
)

// BuiltinLogger is the provider for the access log that is there without an entry in the mesh settings, as Istio's: what a waypoint
// writes itself. An entry of that name takes its place.
const BuiltinLogger = "envoy"

// streams are the files that a pod's log is made of.
var streams = []string{"/dev/stdout", "/dev/stderr"}

// Logger is an extension provider that takes lines of the access log.
type Logger struct {
	// Usable tells whether lines can be had by it.
	Usable bool
	// Fault says what of it cannot be had; "" if nothing.
	Fault string
}

// LoggerOf returns what an extension provider for the access log says; false for a provider of something else.
func LoggerOf(p *meshv1alpha1.MeshConfig_ExtensionProvider) (Logger, bool) {
	switch provider := p.GetProvider().(type) {
	case *meshv1alpha1.MeshConfig_ExtensionProvider_EnvoyFileAccessLog:
		file := provider.EnvoyFileAccessLog
		switch {
		case file.GetPath() != "" && !slices.Contains(streams, file.GetPath()):
			return Logger{Fault: "waypoints write to no file: path can be /dev/stdout, which is the pod's log"}, true
		case file.GetLogFormat() != nil || file.GetOmitEmptyValues():
			return Logger{Usable: true, Fault: "logFormat and omitEmptyValues are not supported: lines have the fields that ambit's documentation names, as text or JSON"}, true
		}
		return Logger{Usable: true}, true
	case *meshv1alpha1.MeshConfig_ExtensionProvider_EnvoyHttpAls, *meshv1alpha1.MeshConfig_ExtensionProvider_EnvoyTcpAls,
		*meshv1alpha1.MeshConfig_ExtensionProvider_EnvoyOtelAls:
		return Logger{Fault: "only providers of kind envoyFileAccessLog take lines of waypoints' access log"}, true
	}
	return Logger{}, false
}

// LoggerNamed returns the provider of that name for the access log; false if there is none.
func LoggerNamed(all []*meshv1alpha1.MeshConfig_ExtensionProvider, name string) (Logger, bool) {
	for _, p := range all {
		if p.GetName() == name {
			return LoggerOf(p)
		}
	}
	return Logger{Usable: true}, name == BuiltinLogger
}
