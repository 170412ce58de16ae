// Package enrolment decides from labels and annotations whether a pod is to be captured, for the plugin and the agent
// alike. It is pure: what it is given decides.
package enrolment

import (
	"fmt"
	"slices"
	"strconv"

	"github.com/ambit-mesh/ambit/api"
)

// Pod is what of a pod decides.
type Pod struct {
	Namespace           string
	Labels, Annotations map[string]string
	HostNetwork         bool
	// Ended: the pod's phase is Succeeded or Failed.
	Ended bool
}

// Decision is the answer, and why.
type Decision struct {
	Capture bool
	// Reason says in words which rule decided, such that it can stand behind "because".
	Reason string
	// BypassInbound leaves the pod's inbound connections alone.
	BypassInbound bool
	// DNS is whether the pod's name queries are to go to the proxy.
	DNS Choice
	// Problems are values on the pod or its namespace that are not understood, in words; they were taken for absent.
	Problems []string
}

// Choice is what a pod says about something that a setting of the mesh decides otherwise.
type Choice uint8

// Choices. The zero value leaves it to the setting.
const (
	ChoiceDefault Choice = iota
	ChoiceOn
	ChoiceOff
)

// Or resolves a choice by the setting.
func (c Choice) Or(setting bool) bool { return c == ChoiceOn || c == ChoiceDefault && setting }

// Decide applies the rules in their order: what can or may never be captured, then the pod's label, then its namespace's.
func Decide(p Pod, namespaceLabels map[string]string, excluded []string) Decision {
	d := Decision{}
	switch _, sidecar := p.Annotations[api.AnnotationSidecarStatus]; {
	case p.HostNetwork:
		d.Reason = "it uses the host's network"
		return d
	case slices.Contains(excluded, p.Namespace):
		d.Reason = "namespace " + p.Namespace + " is excluded from the mesh"
		return d
	case sidecar:
		d.Reason = "it has a sidecar (annotation " + api.AnnotationSidecarStatus + ")"
		return d
	case p.Ended:
		d.Reason = "it has ended"
		return d
	}
	if v, ok := p.Annotations[api.AnnotationBypassInbound]; ok {
		bypass, err := strconv.ParseBool(v)
		if err != nil {
			d.Problems = append(d.Problems, fmt.Sprintf("annotation %s is %q, neither true nor false: inbound connections are captured",
				api.AnnotationBypassInbound, v))
		}
		d.BypassInbound = bypass
	}
	if v, ok := p.Annotations[api.AnnotationDNSCapture]; ok {
		switch on, err := strconv.ParseBool(v); {
		case err != nil:
			d.Problems = append(d.Problems, fmt.Sprintf("annotation %s is %q, neither true nor false: the mesh's setting counts",
				api.AnnotationDNSCapture, v))
		case on:
			d.DNS = ChoiceOn
		default:
			d.DNS = ChoiceOff
		}
	}
	pod, problem := mode(p.Labels, "pod")
	d.Problems = append(d.Problems, problem...)
	namespace, problem := mode(namespaceLabels, "namespace "+p.Namespace)
	d.Problems = append(d.Problems, problem...)
	switch {
	case pod == api.DataplaneModeAmbient:
		d.Capture, d.Reason = true, "it is labelled "+api.LabelDataplaneMode+"="+pod
	case pod == api.DataplaneModeNone:
		d.Reason = "it is labelled " + api.LabelDataplaneMode + "=" + pod
	case namespace == api.DataplaneModeAmbient:
		d.Capture, d.Reason = true, "namespace "+p.Namespace+" is labelled "+api.LabelDataplaneMode+"="+namespace
	default:
		d.Reason = "neither it nor its namespace is labelled " + api.LabelDataplaneMode + "=" + api.DataplaneModeAmbient
	}
	return d
}

// mode returns the data plane mode that labels name, empty if none that is known.
func mode(labels map[string]string, whose string) (string, []string) {
	switch v, ok := labels[api.LabelDataplaneMode]; {
	case !ok, v == api.DataplaneModeAmbient, v == api.DataplaneModeNone:
		return v, nil
	default:
		return "", []string{fmt.Sprintf("label %s of the %s is %q, neither %s nor %s: it is ignored",
			api.LabelDataplaneMode, whose, v, api.DataplaneModeAmbient, api.DataplaneModeNone)}
	}
}
