{{- define "everthread.name" -}}
{{- if contains "everthread" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-everthread" .Release.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "everthread.selector" -}}
app.kubernetes.io/name: everthread
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "everthread.labels" -}}
{{ include "everthread.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "everthread.image" -}}
{{- if .Values.image.digest }}{{ printf "%s@%s" .Values.image.repository .Values.image.digest }}{{ else }}{{ printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) }}{{ end }}
{{- end }}

{{/* Whole seconds of a drain; the 5 s that a node takes at most for what is behind it; 3 s for a slow machine. */}}
{{- define "everthread.grace" -}}
{{- add .Values.preStopSeconds (div (add (int .Values.node.drainMs) 999) 1000) 5 3 }}
{{- end }}

{{/* Ports of an external Redis, as its address says them. Sentinels name a server, by default on Redis' own port, a cluster others. */}}
{{- define "everthread.redisPorts" -}}
{{- $ports := list }}
{{- if .Values.networkPolicy.redisPorts }}
{{- range .Values.networkPolicy.redisPorts }}{{ $ports = append $ports (int .) }}{{ end }}
{{- else if .Values.redis.existingSecret }}
{{- $ports = list 6379 26379 }}
{{- else }}
{{- $scheme := regexFind "^[a-z-]+" .Values.redis.url }}
{{- $default := 6379 }}
{{- if hasSuffix "-sentinel" $scheme }}{{ $default = 26379 }}{{ $ports = list 6379 }}{{ end }}
{{- $hosts := .Values.redis.url | trimPrefix (printf "%s://" $scheme) | splitList "?" | first | splitList "/" | first | splitList "@" | last }}
{{- range splitList "," $hosts }}
{{- $port := regexFind ":[0-9]+$" . | trimPrefix ":" }}
{{- $ports = append $ports (int ($port | default $default)) }}
{{- end }}
{{- end }}
{{- $ports | uniq | join " " }}
{{- end }}

{{/* What a schema cannot compare. */}}
{{- define "everthread.check" -}}
{{- if lt (int .Values.node.leaseMs) (mul 3 (int .Values.node.workerHeartbeatMs) | int) }}
{{- fail "node.leaseMs must be at least three times node.workerHeartbeatMs: a single lost ping must not kill a run" }}
{{- end }}
{{- if lt (int .Values.node.leaseMs) 1500 }}
{{- fail "node.leaseMs must not be shorter than the return grace of 1500 ms" }}
{{- end }}
{{- if ne (regexMatch "[?&]cert=" .Values.redis.url) (regexMatch "[?&]key=" .Values.redis.url) }}
{{- fail "redis.url: cert= and key= go together" }}
{{- end }}
{{- if and .Values.autoscaling.enabled (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) }}
{{- fail "autoscaling.minReplicas is more than autoscaling.maxReplicas" }}
{{- end }}
{{- if and .Values.autoscaling.enabled (not (dig "requests" "cpu" "" .Values.resources)) }}
{{- fail "autoscaling needs resources.requests.cpu: its percentage is of that" }}
{{- end }}
{{- end }}
