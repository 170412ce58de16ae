{{/* Labels of every object. Call with (dict "root" $ "component" "ztunnel"). */}}
{{- define "ambit.labels" -}}
app.kubernetes.io/name: {{ .component }}
app.kubernetes.io/component: {{ .component }}
app.kubernetes.io/part-of: ambit
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/version: {{ include "ambit.version" .root | quote }}
{{- with .root.Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Labels of every pod: the mesh neither captures nor injects itself. Call with (dict "root" $ "component" "ztunnel" "part" $.Values.ztunnel). */}}
{{- define "ambit.podLabels" -}}
{{ include "ambit.labels" . }}
istio.io/dataplane-mode: none
sidecar.istio.io/inject: "false"
{{- with .part.podLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "ambit.tag" -}}
{{ default .Chart.AppVersion .Values.tag }}
{{- end }}

{{/* The version as a label's value: at most 63 characters of [A-Za-z0-9._-], an alphanumeric one at either end. */}}
{{- define "ambit.version" -}}
{{ include "ambit.tag" . | replace "+" "_" | trunc 63 | trimAll "._-" }}
{{- end }}

{{/* An image and its pull policy. Call with (dict "root" $ "name" "ztunnel" "part" $.Values.ztunnel). */}}
{{- define "ambit.image" -}}
{{- $tag := include "ambit.tag" .root -}}
image: {{ default (printf "%s/%s:%s" .root.Values.hub .name $tag) .part.image | quote }}
imagePullPolicy: {{ default (ternary "Never" "IfNotPresent" (eq $tag "dev")) .root.Values.imagePullPolicy }}
{{- end }}

{{/* Which build the chart's own images are of: another one under the same tag rolls the part. An image that is named in
values is what it is. `ambit` notes its build in the chart. Call with (dict "root" $ "part" $.Values.ztunnel). */}}
{{- define "ambit.build" -}}
{{- if not .part.image -}}
ambit.io/build: {{ default .root.Chart.AppVersion (index .root.Chart.Annotations "ambit.io/build") | quote }}
{{- end }}
{{- end }}

{{/* The front of a pod spec that all parts share. */}}
{{- define "ambit.podSpec" -}}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
priorityClassName: {{ .part.priorityClassName }}
nodeSelector:
  kubernetes.io/os: linux
{{- with .part.nodeSelector }}
{{ toYaml . | indent 2 }}
{{- end }}
{{- end }}

{{/* Environment variables that come from the pod itself, for (list "POD_NAME=metadata.name" ...). */}}
{{- define "ambit.fieldEnv" -}}
{{- range . }}
{{- $p := splitn "=" 2 . }}
- name: {{ $p._0 }}
  valueFrom:
    fieldRef:
      fieldPath: {{ $p._1 }}
{{- end }}
{{- end }}

{{/* Environment variables of a map. */}}
{{- define "ambit.env" -}}
{{- range $name, $value := . }}
- name: {{ $name }}
  value: {{ $value | toString | quote }}
{{- end }}
{{- end }}

{{/* What the control plane is to know of the waypoints that it deploys. */}}
{{- define "ambit.waypointEnv" -}}
{{- $image := fromYaml (include "ambit.image" (dict "root" . "name" "waypoint" "part" .Values.waypoint)) -}}
{{- $env := dict
  "WAYPOINT_IMAGE" $image.image
  "WAYPOINT_IMAGE_PULL_POLICY" $image.imagePullPolicy
  "WAYPOINT_REPLICAS" .Values.waypoint.replicas
  "WAYPOINT_LOG_LEVEL" (default .Values.logLevel .Values.waypoint.logLevel)
  "WAYPOINT_RESOURCES" (toJson .Values.waypoint.resources)
  "WAYPOINT_GRACE_PERIOD" .Values.waypoint.terminationGracePeriodSeconds -}}
{{- with .Values.imagePullSecrets }}
{{- $_ := set $env "WAYPOINT_IMAGE_PULL_SECRETS" (join "," .) }}
{{- end }}
{{- with fromYaml (include "ambit.build" (dict "root" . "part" .Values.waypoint)) }}
{{- $_ := set $env "WAYPOINT_BUILD" (index . "ambit.io/build") }}
{{- end }}
{{- include "ambit.env" $env }}
{{- end }}

{{/* Settings of the mesh: what the user gave in meshConfig wins over what the chart derives. */}}
{{- define "ambit.meshConfig" -}}
{{- $derived := dict "trustDomain" .Values.trustDomain "rootNamespace" .Release.Namespace -}}
{{ toYaml (mergeOverwrite $derived (deepCopy .Values.meshConfig)) }}
{{- end }}
